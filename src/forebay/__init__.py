"""Forebay: the gateway in front of your models.

Clients speak some wire protocol to a gateway; the gateway turns what they say into jobs
whose input and output are numbered streams; a broker keeps the streams and hands jobs to
workers; a worker runs an engine.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
