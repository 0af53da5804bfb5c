#!/bin/sh
# Makes corpus-seed/: small images with every feature, by native qemu-img and qemu-io; and corpus-seed-compressed/:
# streams by zlib and zstd. Run it where those are installed; the result is committed, so that fuzzing needs none of them.
set -eu
cd "$(dirname "$0")"
seeds=$PWD/corpus-seed
rm -rf "$seeds"
mkdir "$seeds"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# create NAME SIZE OPTIONS...
create() {
    name=$1 size=$2
    shift 2
    qemu-img create -q -f qcow2 "$@" "$name.qcow2" "$size"
}
# io NAME COMMAND...
io() {
    name=$1
    shift
    for command; do set -- "$@" -c "$command"; shift; done
    qemu-io "$@" "$name.qcow2" > io.log
}
keep() {
    for name; do mv "$name.qcow2" "$seeds/"; done
}

for cluster in 512 4k; do
    o="cluster_size=$cluster"
    create "plain-$cluster" 256k -o "$o"
    io "plain-$cluster" "write -P 1 0 3k" "write -P 2 20k 5k" "write -z 10k 4k" "write -z -u 16k 4k" "discard 20k 1k"
    create "v2-$cluster" 128k -o "$o,compat=0.10"
    io "v2-$cluster" "write -P 1 1k 3k" "write -z 8k 4k"
    qemu-img snapshot -c old "v2-$cluster.qcow2"
    create "empty-$cluster" 16M -o "$o"
    create "odd-size-$cluster" 12345 -o "$o"
    io "odd-size-$cluster" "write -P 7 0 12800"
    for codec in zlib zstd; do
        create "$codec-$cluster" 128k -o "$o,compression_type=$codec"
        io "$codec-$cluster" "write -P 3 64k 4k" "write -c -P 1 0 4k" "write -c -P 2 4k 4k" "write -P 9 4k 512" \
            "write -c -P 5 124k 4k"
    done
    for bits in 1 2 8 64; do
        create "refcount-$bits-$cluster" 64k -o "$o,refcount_bits=$bits"
        io "refcount-$bits-$cluster" "write -P 1 4k 6k"
    done
    create "snapshots-$cluster" 64k -o "$o"
    io "snapshots-$cluster" "write -P 1 0 8k"
    qemu-img snapshot -c first "snapshots-$cluster.qcow2"
    io "snapshots-$cluster" "write -P 2 4k 8k"
    qemu-img snapshot -c second "snapshots-$cluster.qcow2"
    qemu-img resize -q "snapshots-$cluster.qcow2" 96k 2> /dev/null || true
    io "snapshots-$cluster" "write -c -P 3 32k 4k"
    create "bitmaps-$cluster" 256k -o "$o"
    qemu-img bitmap --add -g 4k "bitmaps-$cluster.qcow2" one
    qemu-img bitmap --add -g 64k "bitmaps-$cluster.qcow2" two
    io "bitmaps-$cluster" "write -P 1 8k 4k"
    qemu-img bitmap --disable "bitmaps-$cluster.qcow2" two
    create "lazy-dirty-$cluster" 64k -o "$o,lazy_refcounts=on"
    (qemu-io -c "write -P 1 0 4k" -c "flush" -c "abort" "lazy-dirty-$cluster.qcow2" > io.log 2>&1) 2> /dev/null || true
    create "base-$cluster" 32k -o "$o"
    qemu-img create -q -f raw "base-$cluster.raw" 9k
    create "overlay-raw-$cluster" 64k -o "$o" -b "base-$cluster.raw" -F raw
    io "overlay-raw-$cluster" "write -P 4 2k 1k"
    create "overlay-qcow2-$cluster" 64k -o "$o" -b "base-$cluster.qcow2" -F qcow2
    io "overlay-qcow2-$cluster" "write -P 4 8k 4k" "write -z 16k 4k"
    create "data-file-$cluster" 64k -o "$o,data_file=data-$cluster.raw"
    io "data-file-$cluster" "write -P 6 0 8k" "write -z 8k 4k"
    create "data-file-raw-$cluster" 64k -o "$o,data_file=data-raw-$cluster.raw,data_file_raw=on"
    io "data-file-raw-$cluster" "write -P 6 4k 4k"
    create "aes-$cluster" 64k --object secret,id=s,data=x -o "$o,encrypt.format=aes,encrypt.key-secret=s"
    create "preallocated-$cluster" 24k -o "$o,preallocation=metadata"
    qemu-img create -q -f qcow2 -o "$o" -b json:'{"driver":"null-co"}' -F raw -u "names-$cluster.qcow2" 64k
    keep plain-$cluster v2-$cluster empty-$cluster odd-size-$cluster zlib-$cluster zstd-$cluster \
        refcount-1-$cluster refcount-2-$cluster refcount-8-$cluster refcount-64-$cluster snapshots-$cluster \
        bitmaps-$cluster lazy-dirty-$cluster overlay-raw-$cluster overlay-qcow2-$cluster data-file-$cluster \
        data-file-raw-$cluster aes-$cluster preallocated-$cluster names-$cluster
done
# Subclusters need clusters of 16 KiB at least, so these are a little larger.
create extended-l2 256k -o cluster_size=16k,extended_l2=on
io extended-l2 "write -P 1 1k 3k" "write -z 8k 1k" "write -z 5k 512"
create extended-l2-zstd 256k -o cluster_size=16k,extended_l2=on,compression_type=zstd
io extended-l2-zstd "write -c -P 1 16k 16k" "write -P 2 1k 512"
keep extended-l2 extended-l2-zstd

# Other formats, for the safety report: their first bytes are what it looks at.
head -c 8192 /dev/zero > small.raw
for format in vmdk vdi vpc vhdx qed qcow parallels; do
    qemu-img convert -f raw -O $format small.raw small.$format 2> /dev/null
    head -c 4096 small.$format > "$seeds/foreign.$format"
done
qemu-img create -q -f vmdk -o subformat=monolithicFlat text.vmdk 8k
mv text.vmdk "$seeds/foreign-text.vmdk"
qemu-img create -q -f raw gpt.raw 40k
printf '\000\000\002\000\356\377\377\377\001\000\000\000\117\000\000\000' | dd of=gpt.raw bs=1 seek=446 conv=notrunc status=none
printf '\125\252EFI PART' | dd of=gpt.raw bs=1 seek=510 conv=notrunc status=none
printf '\001CD001\001' | dd of=gpt.raw bs=1 seek=32768 conv=notrunc status=none
mv gpt.raw "$seeds/hybrid.raw"

# For `compressed`: a byte that says which decoder, then a stream that fills a cluster of 16 KiB.
streams=$PWD/streams
mkdir "$streams"
yes oxcow | head -c 16384 > words
seq 1 9999 | head -c 16384 > numbers
head -c 16384 /dev/zero > zeros
for text in words numbers zeros; do
    python3 -c '
import sys, zlib
text = open(sys.argv[1], "rb").read()
for level in 1, 9:
    stream = zlib.compressobj(level, zlib.DEFLATED, -12)
    with open(f"{sys.argv[2]}/zlib-{level}-{sys.argv[1]}", "wb") as out:
        out.write(b"\0" + stream.compress(text) + stream.flush())
' $text "$streams"
    for level in 1 19; do
        (printf '\001'; zstd -q -c -$level --no-check $text) > "$streams/zstd-$level-$text"
    done
done
rm -rf "$seeds-compressed"
mv "$streams" "$seeds-compressed"

find "$seeds" -size +98k | grep . && { echo "too large" >&2; exit 1; }
echo "$(ls "$seeds" | wc -l) seeds, $(du -sb --apparent-size "$seeds" | cut -f1) bytes"
