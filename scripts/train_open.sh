#!/usr/bin/env bash
# Makes the default weights from photos of faces, stage after stage; stopped and called again, it goes on where it was.
#
#   scripts/train_open.sh FACES [FACES ...]
#
# FACES: folders of aligned faces (`sgpn align` makes one), as `sgpn train --data` takes them.
# REGRESSOR=FILE: a shape regressor to begin with; without it, one is trained from BACKBONE=FILE, torchvision's ImageNet
# MobileNetV2, or without that from nothing.
# What is made lies in experiments/; the last file is experiments/sgpn_open.safetensors, in half precision.
set -eu
[ "${1-}" != -h ] && [ "${1-}" != --help ] || { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"; exit 0; }
[ $# -gt 0 ] || { echo "usage: scripts/train_open.sh FACES [FACES ...]; \`sgpn align PHOTOS -o FACES\` makes such a folder" >&2; exit 2; }
faces=("$@")
out=experiments; mkdir -p "$out"
here=$(cd "$(dirname "$0")" && pwd)

train() { sgpn train "$1" --auto-resume --data "${faces[@]}" --set "path.experiments_root=$out" "${@:2}"; }
newest() { ls -t "$out/$1/models/"*.safetensors | head -1; }

# 1. The shape prior: regressor, textures and landmarks learnt from the photos, and the regressor fitted to these.
regressor=${REGRESSOR:-}
if [ -z "$regressor" ]; then
    train options/train/shape_open.yml ${BACKBONE:+path.pretrain_backbone=$BACKBONE}
    regressor=$(newest shape_open)
fi
textures=$out/open_face_textures.safetensors shape=$out/regressor.safetensors
[ -f "$textures" ] || python "$here/learn_texture_basis.py" --data "${faces[@]}" --weights "$regressor" --every 2 -o "$textures"
[ -f "$shape" ] || python "$here/refit_regressor.py" --data "${faces[@]}" --weights "$regressor" --morphable-model "$textures" -o "$shape"
prior=("path.pretrain_network_shape=$shape")  # which holds the textures too

# 2. The generator: first at 128 px, then grown to 256 px and 512 px.
train options/train/sgpn_open_128.yml "${prior[@]}"
train options/train/sgpn_open_256_grown.yml "${prior[@]}" "path.grow_from=$(newest sgpn_open_128)"
train options/train/sgpn_open_512.yml "${prior[@]}" "path.grow_from=$(newest sgpn_open_256_grown)"
before=$(newest sgpn_open_512) # again with a discriminator that begins anew, and more of what only large photos have
train options/train/sgpn_open_512.yml name=sgpn_open_512_again train.total_iter=1400 path.grow_from=~ \
    "path.pretrain_network_g=$before" "path.pretrain_network_shape=$before" \
    datasets.train.inpaint.probability=0.2 datasets.train.degradation.presets.clean=6 \
    datasets.train.degradation.defects.sensor_noise.probability=0.5
# Once more, with more of what is hard, a weaker discriminator, and the rendering in holes.
harder=(datasets.train.degradation.presets.clean=3 datasets.train.degradation.presets.medium=6
    datasets.train.degradation.presets.severe=6 datasets.train.degradation.defects.sensor_noise.probability=0.4
    "datasets.train.inpaint={probability: 0.25, area: [0.01, 0.2], fill: rendering}" train.losses.perceptual.loss_weight=0.3)
before=$(newest sgpn_open_512_again)
train options/train/sgpn_open_512.yml name=sgpn_open_512_last train.total_iter=2400 path.grow_from=~ \
    "path.pretrain_network_g=$before" "path.pretrain_network_shape=$before" "${harder[@]}" train.gan.loss_weight=0.004
# Until here, the regressor of what ships had only had its last layers fitted to photos. It was now trained as a whole, and the
# generator got used to it.
before=$(newest sgpn_open_512_last) again=$out/regressor_again.safetensors
[ -f "$again" ] || python "$here/refit_regressor.py" --data "${faces[@]}" --weights "$before" -o "$again"
train options/train/sgpn_open_512.yml name=sgpn_open_512_prior train.total_iter=1400 path.grow_from=~ \
    "path.pretrain_network_g=$before" "path.pretrain_network_shape=$again" train.train_shape=false train.mesh_weight=0 "${harder[@]}"
# The four pixels that each place makes had got offsets of their own, which showed as a grid in irises. It is learnt away, and what
# is left of it regressed away.
before=$(newest sgpn_open_512_prior) even=$out/evened.safetensors
train options/train/sgpn_open_512.yml name=sgpn_open_512_even train.total_iter=880 path.grow_from=~ \
    "path.pretrain_network_g=$before" "path.pretrain_network_shape=$before" train.train_shape=false train.mesh_weight=0 "${harder[@]}" \
    train.gan.loss_weight=0.008 "train.losses.grid={type: GridLoss, loss_weight: 2}"
train options/train/sgpn_open_512.yml name=sgpn_open_512_even train.total_iter=1060 train.optim_g.lr=6.0e-3 path.grow_from=~ \
    "path.pretrain_network_g=$before" "path.pretrain_network_shape=$before" train.train_shape=false train.mesh_weight=0 "${harder[@]}" \
    train.gan.loss_weight=0.006 "train.losses.grid={type: GridLoss, loss_weight: 20}"
[ -f "$even" ] || python "$here/even_out_patches.py" "$(newest sgpn_open_512_even)" --data "${faces[@]}" -o "$even"
# Brown eyes came out blue or grey. In one more pass, eyes and mouth count more, and the person somewhat more; then the grid again.
train options/train/sgpn_open_512.yml name=sgpn_open_512_eyes train.total_iter=1500 train.optim_g.lr=4.0e-3 path.grow_from=~ \
    "path.pretrain_network_g=$even" "path.pretrain_network_shape=$even" train.train_shape=false train.mesh_weight=0 "${harder[@]}" \
    train.gan.loss_weight=0.006 "train.losses.grid={type: GridLoss, loss_weight: 20}" \
    "train.losses.components={type: FacialComponentLoss, loss_weight: 1}" train.losses.identity.loss_weight=0.8
last=$out/evened_again.safetensors
[ -f "$last" ] || python "$here/even_out_patches.py" "$(newest sgpn_open_512_eyes)" --data "${faces[@]}" -o "$last"
python "$here/ship_weights.py" "$last" --output "$out/sgpn_open.safetensors"
