"""Fine-tunes without a break, and again with kills, in forks of one process; prints exit codes and digests.

Called as ``finetune_child.py STORE PRETRAINED FOLDER``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from commands.resume_child import after_the_log, digest, while_writing

from medssl import cli

WORDS = (
    "--config", "segment_3d_small", "--data.view.size", "[16,16,8]", "--training.steps", "6", "--labels", "3",
    "--training.output.validate_every", "2", "--training.output.checkpoint_every", "4",
    "--training.output.log_every", "1",
)  # fmt: skip


def forked(run: Path, store: str, pretrained: str, fault=lambda: None) -> int:
    child = os.fork()
    if child == 0:
        code = 99
        try:
            fault()
            code = cli.main(["finetune", *WORDS, "--store", store, "--run", str(run), "--pretrained", pretrained])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(store: str, pretrained: str, folder: Path) -> None:
    straight, broken = folder / "straight", folder / "broken"
    codes = [forked(straight, store, pretrained)]
    for fault in (lambda: while_writing(2), lambda: after_the_log(3), lambda: after_the_log(6), lambda: None):
        codes.append(forked(broken, store, pretrained, fault))
    kills = [code for code in codes if code == -signal.SIGKILL]
    print(json.dumps({"codes": codes, "kills": len(kills), "straight": digest(straight), "broken": digest(broken)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
