"""The Responses API's ways to say a conversation, in the words of chat completions."""

from __future__ import annotations

import re
from typing import Any

from forebay.errors import BadRequest, Unsupported

__all__ = ["chat_format", "chat_messages", "chat_tool_choice", "chat_tools"]

_ROLES = frozenset({"user", "assistant", "system", "developer"})
_TEXT = frozenset({"input_text", "output_text", "text"})
_NAME = re.compile(r"[\w.-]{1,64}\Z")


def chat_messages(given: str | list[dict[str, Any]], instructions: str | None) -> list[dict[str, Any]]:  # fmt: skip
    """``input`` and ``instructions`` as messages, oldest first. Raises `BadRequest`."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    for index, item in enumerate(given):
        message = _message(item, f"input[{index}]")
        last = messages[-1] if messages else {}
        if "tool_calls" in message and "tool_calls" in last:
            last["tool_calls"] += message["tool_calls"]
        else:
            messages.append(message)
    return messages


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    match item.get("type", "message"):
        case "message":
            return _said(item, where)
        case "function_call":
            call = {
                "id": _text(item, "call_id", where),
                "type": "function",
                "function": {
                    "name": _text(item, "name", where),
                    "arguments": _text(item, "arguments", where),
                },
            }
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            output = item.get("output")
            content = output if isinstance(output, str) else _content(output, f"{where}.output")
            return {"role": "tool", "tool_call_id": _text(item, "call_id", where), "content": content}  # fmt: skip
        case _:
            raise Unsupported("item is of a type that is not offered", param=f"{where}.type")


def _said(item: dict[str, Any], where: str) -> dict[str, Any]:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRequest(
            f"role is unknown, expected one of {', '.join(sorted(_ROLES))}", param=f"{where}.role"
        )
    return {"role": role, "content": _content(item.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest("content is neither text nor parts", param=where)
    parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise BadRequest("part is no object", param=where)
    if part.get("type") in _TEXT:
        return {"type": "text", "text": _text(part, "text", where)}
    if part.get("type") == "refusal":
        return {"type": "text", "text": _text(part, "refusal", where)}
    if part.get("type") == "input_image" and isinstance(part.get("image_url"), str):
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    raise Unsupported("part is of a type that is not offered", param=f"{where}.type")


def _text(item: dict[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"{name} is missing", param=f"{where}.{name}")
    return value


def chat_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Function tools; no others are offered here. Raises `BadRequest`."""
    if not tools:
        return None
    found = []
    for index, tool in enumerate(tools):
        name = tool.get("name")
        if tool.get("type") != "function":
            raise Unsupported("only function tools are offered", param=f"tools[{index}].type")
        if not isinstance(name, str) or not _NAME.match(name):
            raise BadRequest("name is missing or malformed", param=f"tools[{index}].name")
        kept = ("name", "description", "parameters", "strict")
        function = {key: tool[key] for key in kept if tool.get(key) is not None}
        found.append({"type": "function", "function": function})
    return found


def chat_tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    name = choice.get("name")
    if choice.get("type") != "function" or not isinstance(name, str):
        raise BadRequest("expected a function and its name", param="tool_choice")
    return {"type": "function", "function": {"name": name}}


def chat_format(text: dict[str, Any] | None) -> dict[str, Any] | None:
    """``text.format`` as ``response_format``; None for plain text."""
    wanted = (text or {}).get("format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or not isinstance(wanted.get("type"), str):
        raise BadRequest("format is no object with a type", param="text.format")
    if wanted["type"] == "text":
        return None
    if wanted["type"] != "json_schema":
        return {"type": wanted["type"]}
    kept = ("name", "description", "schema", "strict")
    schema = {key: wanted[key] for key in kept if wanted.get(key) is not None}
    return {"type": "json_schema", "json_schema": schema}
