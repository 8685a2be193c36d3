"""What runs inside the sandbox: a program, then its tests in the same module, and at the end the token that proves it.

Given to the interpreter as `-c`, with the job as JSON on its input; imports the standard library alone. Whatever ends the
interpreter earlier (an exception, sys.exit, os._exit, a signal) ends it without the token.
"""

import json
import os
import resource
import sys
import types


def main() -> None:
    # A program may rebind any of these; what it finds is not what is called here.
    write, leave, run, build = os.write, os._exit, exec, compile
    job = json.load(sys.stdin)
    token = job.pop("token")
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    limits = {
        resource.RLIMIT_AS: job["memory"],
        resource.RLIMIT_FSIZE: job["file"],
        resource.RLIMIT_CORE: 0,
    }
    if job["processes"]:
        limits[resource.RLIMIT_NPROC] = job["processes"]
    if job["user"]:
        os.setgroups([])
        os.setgid(job["user"])
        os.setuid(job["user"])
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))
    resource.setrlimit(
        resource.RLIMIT_CPU, (job["cpu"], job["cpu"] + 1)
    )  # a signal that has a name, then one without appeal
    if job["packages"]:
        sys.path.append(job["packages"])
    module = types.ModuleType("solution")  # so that tests may say `from solution import ...`
    sys.modules["solution"] = module
    try:
        tests = build(job["tests"], "tests", "exec")
        run(build(job["code"], "solution", "exec"), module.__dict__)
        run(tests, module.__dict__)
    except BaseException as error:  # whatever a program raises, SystemExit among it, is its failure
        write(out, f"{type(error).__name__}: {error}"[:500].encode(errors="replace"))
        leave(1)
    write(out, token.encode())
    leave(0)


if __name__ == "__main__":
    main()
