"""A system-call filter for bubblewrap (`--seccomp`): no namespaces, no memory outside the limits, no access to other
processes.

Classic BPF as in seccomp(2), for the two machines whose system-call numbers are below.
"""

from __future__ import annotations

import errno
import platform
import struct

# (number of the machine in audit.h, clone, clone3, numbers of what is refused)
MACHINES = {
    "x86_64": (0xC000003E, 56, 435, {
        "unshare": 272, "setns": 308, "memfd_create": 319, "memfd_secret": 447, "shmget": 29, "msgget": 68, "ptrace": 101,
        "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438, "mount": 165, "keyctl": 250, "add_key": 248,
        "request_key": 249, "userfaultfd": 323, "perf_event_open": 298, "bpf": 321, "io_uring_setup": 425,
    }),
    "aarch64": (0xC00000B7, 220, 435, {
        "unshare": 97, "setns": 268, "memfd_create": 279, "memfd_secret": 447, "shmget": 194, "msgget": 186, "ptrace": 117,
        "process_vm_readv": 270, "process_vm_writev": 271, "pidfd_getfd": 438, "mount": 40, "keyctl": 219, "add_key": 217,
        "request_key": 218, "userfaultfd": 282, "perf_event_open": 241, "bpf": 280, "io_uring_setup": 425,
    }),
}  # fmt: skip
NEW_NAMESPACES = 0x7E020000  # the flags CLONE_NEW* of clone
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
NUMBER, MACHINE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def program_filter(machine: str | None = None) -> bytes | None:
    """Return the filter as consecutive struct sock_filter; None for a machine with unknown numbers.

    clone3 is reported as absent. The C library then uses clone, whose flags a filter can read.
    """
    known = MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    audit, clone, clone3, refused = known
    steps = [(LOAD, 0, 0, MACHINE), (EQUAL, 1, 0, audit), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, NUMBER)]
    steps += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]  # the numbers of x32
    for number in refused.values():
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    steps += [(EQUAL, 0, 1, clone3), (RETURN, 0, 0, ABSENT)]
    steps += [
        (EQUAL, 0, 3, clone),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (ANY_BIT, 0, 1, NEW_NAMESPACES),
        (RETURN, 0, 0, REFUSE),
    ]
    steps += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
