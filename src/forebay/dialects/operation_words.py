"""What `/send_operation` says in words: to the model, and to people when something failed.

English and Chinese, as the request's ``lang`` has it. Which words a model gets is part of
this dialect; which model gets them is not.
"""

from __future__ import annotations

from typing import Any

import msgspec

from forebay.errors import ForebayError

__all__ = ["error_words", "messages", "no_media", "refused_prefix"]

CONTEXT_CHARS = 60_000
"""Context beside the question itself; what is older is left out."""
TEXT_CHARS = 100_000
"""One field of the payload."""

_MEDIA = ("/image", "/video")
_STYLES = ("/webpage", "/react", "/component", "/command")
_CONTEXT = ("current_context", "related_cells", "related_qas", "related_actions", "agent_memory")

_SYSTEM = {
    "en": {
        "user_question": "You are the assistant of a computing notebook. Answer the question "
        "about it, in English, in Markdown.",
        "user_command": "You write one cell of a computing notebook. Answer in English. Put "
        "explanations between <add-text> and </add-text>, and code that is to be run between "
        '<add-code language="python"> and </add-code>.',
        "code_output": "Describe in a few English sentences what the output of this code shows.",
        "code_error_should_debug": "This code failed. Say in English, in one or two sentences "
        "between <add-text> and </add-text>, what is wrong; then give the whole corrected code "
        'between <add-code language="python"> and </add-code>.',
    },
    "zh": {
        "user_question": "你是计算笔记本的助手。请用中文、以 Markdown 格式回答有关它的问题。",
        "user_command": "你来编写计算笔记本的一个单元。请用中文回答。说明文字放在 <add-text> 和 "
        '</add-text> 之间，要运行的代码放在 <add-code language="python"> 和 </add-code> 之间。',
        "code_output": "请用几句中文说明这段代码的输出表示什么。",
        "code_error_should_debug": "这段代码运行出错。请先用一两句中文说明错在哪里，放在 <add-text> "
        '和 </add-text> 之间；再给出完整的改正代码，放在 <add-code language="python"> 和 '
        "</add-code> 之间。",
    },
}
_STYLE = {
    "/webpage": "one complete HTML page",
    "/react": "one React component",
    "/component": "one self-contained component",
}

_ERRORS_ZH = {
    "bad_request": "请求有误",
    "too_large": "请求过大",
    "prompt_too_long": "内容过长，超出模型的上下文",
    "model_not_found": "没有这个模型",
    "no_workers": "当前没有可用的模型",
    "queue_full": "排队已满，请稍后再试",
    "wait_too_long": "等待时间过长，请稍后再试",
    "quota_exceeded": "已超出配额",
    "draining": "服务正在关闭",
    "store_full": "服务内存已满，请稍后再试",
    "too_many_operations": "同时进行的操作过多，请稍后再试",
    "upstream_failed": "模型服务器出错",
    "upstream_refused": "模型服务器拒绝了请求",
    "upstream_cut": "模型服务器中断了回答",
    "upstream_timeout": "模型服务器没有及时回答",
    "worker_lost": "模型进程已退出",
    "engine_failed": "模型出错",
    "deadline_exceeded": "超过了时间限制",
    "cancelled": "操作已取消",
    "unknown_operation": "未知的操作",
}


def error_words(error: ForebayError, lang: str) -> str:
    """What failed, for a person. In Chinese the English facts follow in brackets."""
    if lang != "zh":
        return error.message
    said = _ERRORS_ZH.get(error.code, "操作失败")
    return error.message if not error.message.isascii() else f"{said}（{error.message}）"


def no_media(prefix: str, lang: str) -> str:
    """That this gateway makes no pictures or films."""
    what = "images" if prefix == "/image" else "videos"
    if lang == "zh":
        return "本服务不生成图片" if what == "images" else "本服务不生成视频"
    return f"no model here makes {what}"


def refused_prefix(kind: str, payload: dict[str, Any]) -> str:
    """The prefix of a command that only another kind of model could follow, or ""."""
    word = _prefix(payload) if kind == "user_command" else ""
    return word if word in _MEDIA else ""


def messages(kind: str, payload: dict[str, Any], lang: str) -> list[dict[str, Any]]:
    """The conversation an operation opens with the model."""
    system = _SYSTEM[lang][kind]
    style = _STYLE.get(_prefix(payload)) if kind == "user_command" else None
    if style is not None:
        system += f" The code is {style}."
    asked = {
        "user_question": _question,
        "user_command": _command,
        "code_output": _output,
        "code_error_should_debug": _debug,
    }[kind](payload)
    context = _context(payload)
    said = [{"role": "system", "content": system}]
    if context:
        said.append({"role": "system", "content": f"Notebook:\n{context}"})
    return [*said, {"role": "user", "content": asked}]


def _prefix(payload: dict[str, Any]) -> str:
    word = _text(payload.get("content")).lstrip().partition(" ")[0]
    return word if word in _MEDIA or word in _STYLES else ""


def _question(payload: dict[str, Any]) -> str:
    return _text(payload.get("content"))


def _command(payload: dict[str, Any]) -> str:
    return _text(payload.get("content")).lstrip().removeprefix(_prefix(payload)).lstrip()


def _output(payload: dict[str, Any]) -> str:
    return _fields(
        ("Description", payload.get("description")),
        ("Code", payload.get("executeCode")),
        ("Output", payload.get("executeResult")),
    )


def _debug(payload: dict[str, Any]) -> str:
    """Clients send ``error`` and ``HistoryCode``; the original's server read other names."""
    return _fields(
        ("Earlier code", payload.get("HistoryCode") or payload.get("historyCode")),
        ("Code", payload.get("executeCode")),
        ("Error", payload.get("error") or payload.get("executeResult")),
    )


def _fields(*named: tuple[str, Any]) -> str:
    return "\n\n".join(f"{name}:\n{_text(value)}" for name, value in named if value)


def _context(payload: dict[str, Any]) -> str:
    found = {name: payload[name] for name in _CONTEXT if payload.get(name)}
    return _text(found)[:CONTEXT_CHARS] if found else ""


def _text(value: Any) -> str:
    """Text as it is, anything else as JSON; bounded."""
    if value is None:
        return ""
    said = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
    return said[:TEXT_CHARS]
