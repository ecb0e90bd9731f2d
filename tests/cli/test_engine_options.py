"""An engine's options are looked at before anything is started."""

from __future__ import annotations

import pytest

from forebay.choice import choose, parse_engine
from forebay.config import load
from forebay.core.kinds import Kind
from forebay.errors import ConfigError

WRONG = [
    ("synthetic:nosuch=1", "'synthetic' has no option 'nosuch', expected one of .*latency_ms.*rtf"),
    ("synthetic:rtf=quick", "'rtf' of engine 'synthetic' is 'quick', expected a number from 0"),
    ("whisper:beam=11", "'beam' of engine 'whisper' is '11', expected a whole number from 1 to 10"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_an_option_that_an_engine_does_not_take_is_refused_before_the_start(
    tmp_path, text: str, said: str
) -> None:
    config = load(environ={}, folder=tmp_path, flags={"recognition.engines": [text]})
    with pytest.raises(ConfigError, match=said):
        choose(config, tmp_path)
    with pytest.raises(ConfigError, match=said):
        parse_engine(Kind.RECOGNITION, text)


def test_options_that_an_engine_takes_are_handed_on_as_they_were_written() -> None:
    found = parse_engine(Kind.RECOGNITION, "synthetic:rtf=0.5,partials=no")
    assert found == ("synthetic", {"rtf": "0.5", "partials": "no"})
