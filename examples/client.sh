#!/bin/sh
# Ask a serve-model with curl: client.sh URL MODEL PICTURE VALUES
# VALUES is a file of little-endian float32: one prepared row of the shape below, LeNet-5's.
set -eu
url=$1 model=$2 picture=$3 values=$4
ask() { curl --fail-with-body --silent --show-error --retry 5 --max-time 10 "$@"; echo; }

ask "$url/v2/health/ready"
ask --data-binary "@$picture" "$url/v2/models/$model/classify?k=3"

# the same network by its tensors: JSON, then as many bytes as it says
size=$(($(wc -c <"$values")))
head='{"inputs":[{"name":"'${INPUT:-input}'","datatype":"FP32","shape":'${SHAPE:-[1,1,32,32]}',"parameters":{"binary_data_size":'$size'}}]}'
{ printf %s "$head" && cat "$values"; } |
  ask --data-binary @- -H "Inference-Header-Content-Length: ${#head}" "$url/v2/models/$model/infer"
