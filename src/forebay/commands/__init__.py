"""What the commands of `forebay` do, one module per command or group.

Each public function returns the exit status. Only these modules and `cli` may see every
other part of Forebay.
"""

__all__: list[str] = []
