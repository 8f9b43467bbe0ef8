#!/bin/bash
# Train on two nodes with four GPUs each, one process per GPU: sbatch docs/slurm.sh
# Submit it from the project's folder, on a file system that all nodes share, after the data was downloaded by
# python scripts/train.py --fast_dev_run --accelerator cpu
#SBATCH --job-name=fashion-mnist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=00:30:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
for name in SLURM_JOB_ID SLURM_JOB_NUM_NODES SLURM_NTASKS_PER_NODE SLURM_CPUS_PER_TASK; do
    if [[ -z ${!name:-} ]]; then
        echo "error: cannot train: $name is not set, so this is no SLURM job (submit it: sbatch docs/slurm.sh)" >&2
        exit 1
    fi
done
if [[ ! -f .venv/bin/activate ]]; then
    echo "error: cannot train: $PWD has no .venv (submit the job from the project's folder, after make train)" >&2
    exit 1
fi
source .venv/bin/activate

# A job keeps its number when it is queued again, so this folder holds its own run.
logs=lightning_logs/slurm_$SLURM_JOB_ID
if [[ -d $logs/version_0 ]]; then
    set -- --resume last "$@"
fi
status=0
# If a process dies, all end.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    python scripts/train.py --config recipes/seed.yaml --accelerator gpu --devices "$SLURM_NTASKS_PER_NODE" \
    --num_nodes "$SLURM_JOB_NUM_NODES" --strategy ddp --log_dir "$logs" "$@" || status=$?
# Two minutes before the time limit, SIGUSR1 saves and stops the training (138). srun may send the last processes SIGTERM
# (143). After scancel, this script has ended; a job that SLURM itself preempts is queued again by SLURM.
if ((status == 138 || status == 143)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
