"""Load, faults and reports: what `forebay bench` runs. For measuring, never for serving."""
