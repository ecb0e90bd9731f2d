"""Configuration: every setting once, from wherever it was set.

``load`` settles the values (defaults < file < .env < environment < command line);
``config[table.PORT]`` reads one, with its type. Units stand in `Setting.unit` and in names.
"""

from __future__ import annotations

from forebay.config import table
from forebay.config.load import Config, Ignored, Value, load, read_dotenv
from forebay.config.rows import rows
from forebay.config.setting import Alias, Setting
from forebay.config.table import BY_NAME, NO_EFFECT, SETTINGS

__all__ = [
    "BY_NAME",
    "NO_EFFECT",
    "SETTINGS",
    "Alias",
    "Config",
    "Ignored",
    "Setting",
    "Value",
    "load",
    "read_dotenv",
    "rows",
    "table",
]
