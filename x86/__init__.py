"""What the architecture manual says: control registers, paging modes, table entries and walks."""
