"""Methods, one file each with both halves: the server's Strategy and what its clients do."""
