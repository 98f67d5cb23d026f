#!/usr/bin/env bash
# Trains the default weights' stages one after the other within a time, on one GPU; called again, it goes on where it was.
#
#   scripts/train_timed.sh FACES SECONDS [STAGE=SECONDS ...]
#   scripts/train_timed.sh faces256pack 560 shape=240 joint=900 sharp=500
#
# FACES: a folder of aligned faces, as `sgpn train --data` takes it (scripts/pack_faces.py makes a small one). SECONDS: of
# this call. STAGE=SECONDS: what each stage may take over all calls; prior=SECONDS adds the generative prior, from which joint
# then starts. The learnt textures lie in experiments/open_face_textures.safetensors (scripts/learn_texture_basis.py).
# At the end the newest weights are written in half precision to experiments/gpu_weights.safetensors.
set -u
[ "${1-}" != -h ] && [ "${1-}" != --help ] || { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"; exit 0; }
[ $# -ge 2 ] || { echo "usage: scripts/train_timed.sh FACES SECONDS [STAGE=SECONDS ...]; --help says more" >&2; exit 2; }
faces=$1; deadline=$((SECONDS + $2)); shift 2
declare -A budget=([prior]=0 [shape]=240 [joint]=900 [sharp]=500)
for pair in "$@"; do budget[${pair%%=*}]=${pair#*=}; done
experiments=experiments

newest() { ls -t "$experiments/gpu_$1_256/models/"*.safetensors 2>/dev/null | head -1; }

# What each stage takes from those before it.
given() {
    case $1 in
        joint)
            echo "path.pretrain_network_shape=$(newest shape)"
            [ "${budget[prior]}" -gt 0 ] && echo "path.pretrain_prior=$(newest prior) train.start_from_input=false"
            ;;
        sharp) echo "path.pretrain_network_shape=$(newest joint) path.pretrain_network_g=$(newest joint)" ;;
    esac
}

for stage in prior shape joint sharp; do
    spent_file=$experiments/gpu_$stage.seconds
    mkdir -p "$experiments"
    spent=$(cat "$spent_file" 2>/dev/null || echo 0)
    left=$((budget[$stage] - spent)); rest=$((deadline - SECONDS - 15))  # for the last checkpoint
    [ "$left" -le 20 ] && continue
    [ "$rest" -le 20 ] && break
    seconds=$((left < rest ? left : rest)); began=$SECONDS
    # SIGTERM finishes the step and saves; --auto-resume goes on from there. The options are the same in every call.
    arguments_file=$experiments/gpu_$stage.arguments
    [ -f "$arguments_file" ] || given "$stage" >"$arguments_file"
    # shellcheck disable=SC2046
    timeout -s TERM "$seconds" sgpn train "options/gpu/${stage}_256.yml" --auto-resume \
        --data "$faces" --set "path.experiments_root=$experiments" $(cat "$arguments_file")
    code=$?
    case $code in
        0) echo "${budget[$stage]}" >"$spent_file" ;;  # all steps are made
        124 | 143) echo $((spent + SECONDS - began)) >"$spent_file" ;;
        *) echo "stage $stage failed ($code); see above" >&2; exit $code ;;
    esac
done
best=$(newest sharp); best=${best:-$(newest joint)}
[ -n "$best" ] && python scripts/ship_weights.py "$best" --output "$experiments/gpu_weights.safetensors"
