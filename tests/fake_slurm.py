"""Slurm's commands for one machine: sbatch really runs the script, srun its command, sacct tells how it goes."""

from __future__ import annotations

from pathlib import Path

COMMANDS = {
    "sbatch": """
script="${@: -1}"
id=$(( $(ls "$jobs" | wc -l) + 1 ))
while ! mkdir "$jobs/$id" 2>/dev/null; do id=$((id + 1)); done
cp "$script" "$jobs/$id/script"
export SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
(bash "$jobs/$id/script"; echo $? > "$jobs/$id/code") > "$jobs/$id/log" 2>&1 < /dev/null &
echo "Submitted batch job $id"
""",
    "srun": """
while [[ "$1" == --* ]]; do
  if [[ "$1" == --output || "$1" == --error ]]; then
    target="${2//%j/$SLURM_JOB_ID}"; target="${target//%t/0}"
    mkdir -p "$(dirname "$target")"
    if [[ "$1" == --output ]]; then exec >> "$target"; else exec 2>> "$target"; fi
    shift
  fi
  shift
done
exec "$@"
""",
    "sacct": """
echo "JobID|State|NodeList"
for folder in "$jobs"/*; do
  state=RUNNING
  if [[ -f "$folder/code" ]]; then state=$([[ $(cat "$folder/code") == 0 ]] && echo COMPLETED || echo FAILED); fi
  echo "$(basename "$folder")|$state|here"
done
""",
    "scancel": "true\n",
}


def install(folder: Path) -> Path:
    """Write the commands into FOLDER/bin, for PATH; jobs are kept in FOLDER/jobs."""
    commands, jobs = folder / "bin", folder / "jobs"
    commands.mkdir(parents=True)
    jobs.mkdir()
    for name, text in COMMANDS.items():
        path = commands / name
        path.write_text(f'#!/bin/bash\njobs="{jobs}"\n{text}')
        path.chmod(0o755)
    return commands
