"""Configuration: every setting once, from wherever it was set.

``load`` settles the values (defaults < file < .env < environment < command line);
``config[table.PORT]`` reads one, with its type. Units stand in `Setting.unit` and in names.
"""

from __future__ import annotations

from forebay.config import reference, service_files, table
from forebay.config.load import Config, Ignored, Value, load, read_dotenv
from forebay.config.originals import NO_EFFECT
from forebay.config.rows import rows
from forebay.config.setting import Alias, Setting
from forebay.config.table import BY_NAME, SETTINGS

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
    "reference",
    "rows",
    "service_files",
    "table",
]
