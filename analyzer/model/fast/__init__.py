"""The same model over flat arrays, compiled with numba: the rooms of ``analyzer.model.kernel``.

They follow the readable core function by function, under the same names; that one is the specification. ``layout`` says
what the arrays hold, ``compiled`` how they are compiled; ``frames`` is guest memory and what is known of each guest frame,
``cache`` the shadow page cache, ``roots`` modes and control registers, ``faults`` page faults, ``events`` the loop over
events. Every number is a signed 64-bit integer: addresses and entries in two's complement, as the trace file holds them.
"""
