"""The commands of ``geokr``, a module a group: their options, their help, and how results are shown.

A command reads its arguments, calls one function of the library and shows what it returns. Not here: anything that
computes, and how errors end the program (``cli``).
"""
