"""The timeline: the traces of both sides of an operation as one picture.

`trace_lines` reads files, `sides` and `operations` find what belongs together in them, `clocks`
aligns the clocks of two machines, `model` draws the picture without saying how it looks, and `page`
and `trace_event` write it.
"""
