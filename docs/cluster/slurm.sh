#!/bin/bash
#SBATCH --nodes=3 --ntasks-per-node=1 --cpus-per-task=16 --time=04:00:00
#SBATCH --requeue --signal=B:TERM@120 --open-mode=append
# sbatch docs/cluster/slurm.sh strategy=oqfl clients.total=500 rounds=200
# One Ray node on each machine of the job, the head on the first one, where this script runs too.
set -u
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(openssl rand -hex 32) RAY_USAGE_STATS_ENABLED=0
export HEAD=${HEAD:-$(hostname -I | cut -d" " -f1)}
export PORT=$((20000 + SLURM_JOB_ID % 20000))

srun --ntasks-per-node=1 --overlap bash -c '
  if [ "$SLURM_PROCID" = 0 ]; then
    exec ray start --block --head --node-ip-address="$HEAD" --port="$PORT" --num-cpus="$SLURM_CPUS_PER_TASK" \
      --include-dashboard=false
  fi
  until (exec 3<>"/dev/tcp/$HEAD/$PORT") 2>/dev/null; do sleep 1; done
  exec ray start --block --address="$HEAD:$PORT" --num-cpus="$SLURM_CPUS_PER_TASK"' &
nodes=$!

until python - <<'EOF'
import os, ray
ray.init(os.environ["HEAD"] + ":" + os.environ["PORT"], log_to_driver=False, logging_level="ERROR")
raise SystemExit(sum(node["Alive"] for node in ray.nodes()) < int(os.environ["SLURM_NNODES"]))
EOF
do sleep 2; done 2>/dev/null

python main.py engine.address="$HEAD:$PORT" checkpoint.every=5 resume=true \
  hydra.run.dir="runs/slurm/$SLURM_JOB_ID" "$@" &
run=$!
trap 'kill -TERM $run' TERM
wait $run; code=$?
[ $code -gt 128 ] && { wait $run; code=$?; }
kill $nodes
[ $code -gt 128 ] && scontrol requeue "$SLURM_JOB_ID"
exit $code
