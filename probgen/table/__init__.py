"""What columns of a table are: kinds for :meth:`Table.change <probgen.Table.change>`."""

from probgen.table.kinds import Continuous, Count, Date, Flag, Kind, Label

__all__ = ["Continuous", "Count", "Date", "Flag", "Kind", "Label"]
