"""What the kernel finds sooner is what Jupyter and IPython find."""

# mypy: allow-untyped-calls
# (Jupyter's kernel is not typed.)

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import zmq
from ipykernel import ipkernel, kernelbase
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client import jsonutil, session

from forebay.engines.kernel_quick import _Accepts, _Awaits, _Once, _pack, _Tokens, send

CELLS = (
    "print(1)",
    "x = 3\nfor i in range(x):\n    print(i % 2)\n",
    "%time 1",
    "a = %time 1",
    "files = !ls",
    "!ls",
    "print?",
    "  ?print",
    "x = 1\n/print 1",
    "x = 1\n  ,print a b",
    ";print a",
    "%%capture\nprint(1)",
    ">>> print(1)",
    "In [1]: print(1)",
    "   indented = 1\n   other = 2",
    "text = '''\n%not a magic\n'''",
    "(1\n/ 2)",
    "a = (1,\n  2)  # so?",
    "if x:\n  /print 2",
    "unclosed = (1,",
    "naïve = 'ü'\r\nprint(naïve)",
    "\n\n\nprint('late')",
)


@pytest.mark.parametrize("code", CELLS)
def test_special_lines_are_found_where_there_are_any(code: str) -> None:
    plain, quick = TransformerManager(), TransformerManager()
    quick.do_token_transforms = _Tokens(quick)  # type: ignore[method-assign]
    assert quick.transform_cell(code) == plain.transform_cell(code)


def test_a_transformer_of_the_users_own_is_asked() -> None:
    class Own:
        @classmethod
        def find(cls, lines: Any) -> None:
            asked.append(lines)

    asked: list[Any] = []
    manager = TransformerManager()
    manager.do_token_transforms = _Tokens(manager)  # type: ignore[method-assign]
    manager.transform_cell("print(1)")
    assert not asked
    manager.token_transformers.append(Own)
    manager.transform_cell("print(1)")
    assert asked


@pytest.mark.parametrize(
    "code",
    [
        "print(1)\n",
        "await x\n",
        "async for i in x: pass\n",
        "async with x: pass\n",
        "def f():\n    pass\n",
        "async def f():\n    await x\n",
        "'await'\n",
        "yield 1\n",
        "syntax error\n",
        "[i async for i in x]\n",
    ],
)
def test_a_cell_awaits_or_not_as_ipython_says(code: str) -> None:
    shell = InteractiveShell()
    quick = _Awaits(shell.should_run_async)
    assert quick(code, transformed_cell=code) == shell.should_run_async(code, transformed_cell=code)


def test_a_requests_code_is_transformed_once_and_afterwards_as_ever() -> None:
    seen: list[str] = []

    def transform(code: str) -> str:
        seen.append(code)
        return f"{code} {len(seen)}"

    once = _Once(transform)
    code = "one"
    once.expect(code)
    assert once("another") == "another 1"
    assert [once(code), once(code)] == ["one 2", "one 2"]
    assert once(code) == "one 3"  # the cell itself asks


def test_code_that_cannot_be_transformed_fails_each_time() -> None:
    def transform(code: str) -> str:
        raise SyntaxError(code)

    once = _Once(transform)
    code = "broken"
    once.expect(code)
    for _ in range(2):
        with pytest.raises(SyntaxError):
            once(code)


def test_parameters_are_looked_up_again_where_the_method_is_another() -> None:
    class Shell:
        def plain(self, code: str) -> None: ...

        def full(self, code: str, *, cell_id: str) -> None: ...

        def any(self, **more: Any) -> None: ...

    accepts, shell = _Accepts(kernelbase._accepts_parameters), Shell()
    for method in (shell.plain, shell.full, shell.full, shell.any, Shell().plain):
        for names in (["cell_id", "cell_meta"], ["code"]):
            found = accepts(method, names)
            right = kernelbase._accepts_parameters(method, names)
            assert {k: bool(v) for k, v in found.items()} == {k: bool(v) for k, v in right.items()}
    assert hasattr(ipkernel, "_accepts_parameters")  # where it is put


@pytest.mark.parametrize(
    "what",
    [
        {"a": [1, "ü", None]},
        {"when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)},
        {"\udc80": b"x"},
        {},
    ],
)
def test_a_message_is_packed_as_ever(what: dict[str, Any]) -> None:
    assert _pack(what) == session.json_packer(what)


@pytest.mark.filterwarnings("ignore:Message serialization failed")
def test_what_is_no_json_is_packed_as_ever() -> None:
    for what in ({"a": float("nan")}, {1: {2, 3}}):
        assert json.loads(_pack(what)) == json.loads(session.json_packer(what))


def test_a_date_is_read_as_ever() -> None:
    for said in (
        "2026-01-02T03:04:05.678901Z",
        "2026-01-02T03:04:05.6+00:00",
        "2026-01-02T03:04:05+0130",
    ):
        assert datetime.fromisoformat(said) == jsonutil.parse_date(said)


@pytest.mark.parametrize("size", [0, 3, 100_000])
def test_a_message_arrives_in_its_parts(size: int) -> None:
    with zmq.Context() as context:
        here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        here.bind("inproc://parts")
        there.connect("inproc://parts")
        parts = [b"one", b"", b"x" * size]
        send(here, parts)
        assert there.recv_multipart() == parts
        here.close(0)
        there.close(0)
