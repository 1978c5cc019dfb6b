"""Support for machines: a description of the present one."""
