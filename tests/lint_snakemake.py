"""Run `snakemake --lint` and fail on every remark but one: that a rule names no conda environment or container.

The project has one environment for all rules (requirements/), so that remark holds for each rule on purpose.
(The linter's JSON form cannot be used: Snakemake 9.27 accepts `--lint json` and prints text.)
"""

from __future__ import annotations

import re
import subprocess
import sys

ACCEPTED = "Specify a conda environment or container for each rule."
BLOCK = re.compile(r"^Lints for (.+):$")
REMARK = re.compile(r"^ {4}\* (.+):$")


def remarks(text: str) -> list[str]:
    """`place: title` of every remark of the linter's text that is not accepted."""
    found, place = [], ""
    for line in text.splitlines():
        if block := BLOCK.match(line):
            place = block[1]
        elif (remark := REMARK.match(line)) and remark[1] != ACCEPTED:
            found.append(f"{place}: {remark[1]}")
    return found


def main() -> int:
    done = subprocess.run(["snakemake", "--lint"], capture_output=True, text=True)
    if done.returncode and "Lints for " not in done.stderr:
        sys.stderr.write(done.stderr)
        return done.returncode
    found = remarks(done.stderr)
    for remark in found:
        print(f"snakemake --lint: {remark}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
