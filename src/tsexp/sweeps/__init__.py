"""Jobs of the command line, one or many.

`checks` are made before the first, `jobs` is one of them, `launchers` are where they run, `sweep` is what
surrounds them; `warm` is imported by the server that they are forked from.
"""
