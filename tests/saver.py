"""A process with a plug, told by lines on its input what to do with it; it answers each with one line.

load FOLDER     take up the plug that is saved there
edit NAME       one more fact, about somebody of this name
save FOLDER     "ok", or what the library said
forever FOLDER  save again and again, with the edit switched on and off
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUICK = {"k": 2}
"""Constants of in-context editing, which takes no training."""


class Saver:
    """Such a process."""

    def __init__(self, model: Path) -> None:
        env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def ask(self, line: str) -> None:
        """Have something done; `answer` waits for it."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """What it said."""
        return self.process.stdout.readline().strip()

    def do(self, line: str) -> str:
        """Both."""
        self.ask(line)
        return self.answer()

    def end(self) -> None:
        """End it, at whatever it is."""
        self.process.kill()
        self.process.communicate()


def main(folder: str) -> None:
    """Read and do."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import memplug

    torch.set_num_threads(1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    plug = memplug.attach(model, tokenizer, "icl", **QUICK)
    said = sys.stdout
    for line in sys.stdin:
        what, _, name = line.strip().partition(" ")
        try:
            if what == "load":
                plug.detach()
                plug = memplug.load(name, model, tokenizer)
            elif what == "edit":
                plug.edit(f"Where was {name} born?", "Zarnow", name)
            elif what == "save":
                plug.save(name)
            else:
                said.write("begun\n")
                said.flush()
                while True:
                    for change in (plug.disable, plug.enable):
                        change("e1")
                        plug.save(name)
            said.write("ok\n")
        except ValueError as error:
            said.write(f"{type(error).__name__}: {error}\n")
        said.flush()


if __name__ == "__main__":
    main(sys.argv[1])
