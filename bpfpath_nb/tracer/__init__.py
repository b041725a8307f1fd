"""The privileged process: compile, attach, drain, stream.

Started as ``python -m bpfpath_nb.tracer``, imported by nobody. It reads requests from its standard input, one
JSON object a line::

    {"start": {"filter": "udp port 53", ...}}       the options of `request.Request`
    {"stop": "stopped"}                             or "interrupted": the reason that the stream's end will give

and answers each start with one Arrow IPC stream on its standard output (see `bpfpath_nb.schema`), which ends
when the capture does; then it waits for the next start. When its input closes or its parent dies, it detaches
everything and ends. What it attached hangs on its file descriptors, so that even ``kill -9`` leaves nothing
(except clsact, see `tc`).

The rooms: `watchdog` and `service` are the process, `session` is one capture from start to end. `source`, `unit` and
`toolchain` make a BPF object of `bpf/`, `probes` decides what to attach, `attachment` does, with `kprobes`, `tc` and
`netfilter`; `places` knows the namespaces and interfaces. `ring` drains, `counters` counts, `deliveries` finds out
what was read.
"""
