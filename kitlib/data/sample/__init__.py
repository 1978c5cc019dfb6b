"""The drawn competition: a small world in exactly the file format of the real one."""
