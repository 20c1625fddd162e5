"""Runs that are killed, disks that fail, viewers that crowd, input that lies: figures for docs/reliability.md, one module a section."""
