"""Methods, one file each: what the server does, and what its clients do."""
