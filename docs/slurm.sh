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
#SBATCH --signal=SIGTERM@60

set -euo pipefail
source .venv/bin/activate
# If a process dies, all end. SIGTERM, a minute before the time limit, saves; --resume last continues.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    python scripts/train.py --config recipes/seed.yaml --accelerator gpu \
    --devices "$SLURM_NTASKS_PER_NODE" --num_nodes "$SLURM_JOB_NUM_NODES" --strategy ddp "$@"
