//! Healthy images of many shapes, made by the native tools.

use oxcow_tests::recipe::{Recipe, Step};

/// The images that are damaged: every width of refcounts, every structure, small and large clusters.
pub fn bases() -> Vec<Recipe> {
    let plain = |name: &str, options: &str, size: &str, rounds: u64| {
        let mut steps = vec![
            Step::Raw("base.raw".into(), 300 << 10, 1),
            img(&format!(
                "create -q -f qcow2 -o {options} disk.qcow2 {size}"
            )),
        ];
        for round in 0..rounds {
            // Many compressed clusters in one are more than a narrow refcount can count.
            let compressed = !options.contains("refcount_bits=2") && !options.contains("bits=4");
            steps.push(io(&writes(round, compressed)));
            if round + 1 < rounds {
                steps.push(img(&format!("snapshot -c s{round} disk.qcow2")));
            }
        }
        Recipe {
            name: name.into(),
            steps,
            top: "disk.qcow2".into(),
        }
    };
    let v2 = |name: &str, options: &str, size: &str, rounds: u64| {
        let mut recipe = plain(name, &format!("compat=0.10,{options}"), size, rounds);
        recipe.name = name.into();
        recipe
    };
    let backed = "backing_file=base.raw,backing_fmt=raw";
    vec![
        plain("small-64", "cluster_size=512,refcount_bits=64", "1M", 3),
        plain("small-16", "cluster_size=512", "1M", 4),
        plain("small-8", "cluster_size=1k,refcount_bits=8", "1M", 3),
        plain("small-2", "cluster_size=1k,refcount_bits=2", "1M", 2),
        plain("one-bit", "cluster_size=2k,refcount_bits=1", "1M", 1),
        plain("four-bits", "cluster_size=4k,refcount_bits=4", "2M", 3),
        plain("wide-32", "cluster_size=4k,refcount_bits=32", "2M", 3),
        plain("usual", "cluster_size=64k", "4M", 3),
        plain("no-snapshots", "cluster_size=64k", "4M", 1),
        plain("lazy", "cluster_size=4k,lazy_refcounts=on", "2M", 2),
        plain(
            "preallocated",
            "cluster_size=4k,preallocation=metadata",
            "2M",
            2,
        ),
        plain("subclusters", "cluster_size=16k,extended_l2=on", "2M", 3),
        plain("backed", &format!("cluster_size=4k,{backed}"), "2M", 3),
        plain("zstd", "cluster_size=8k,compression_type=zstd", "2M", 2),
        plain("data-file", "cluster_size=4k,data_file=disk.data", "2M", 1),
        plain("large", "cluster_size=2M,refcount_bits=64", "8M", 2),
        v2("old", "cluster_size=4k", "2M", 3),
        v2("old-small", "cluster_size=512", "1M", 2),
    ]
    .into_iter()
    .map(|mut recipe| {
        if matches!(recipe.name.as_str(), "wide-32" | "usual") {
            let add = |name: &str| img(&format!("bitmap --add -g 64k disk.qcow2 {name}"));
            recipe
                .steps
                .extend([add("first"), io(&writes(9, true)), add("second")]);
        }
        recipe
    })
    .collect()
}

fn img(line: &str) -> Step {
    Step::Img(line.split_whitespace().map(str::to_owned).collect())
}

fn io(commands: &[String]) -> Step {
    // Compressed writes over what is there are refused.
    Step::Try("disk.qcow2".into(), commands.to_vec())
}

fn writes(round: u64, compressed: bool) -> Vec<String> {
    let pattern = 1 + round * 16;
    let place = |index: u64| (index * 7919 + round * 52_361) % 14 * (64 << 10);
    let mut commands: Vec<String> = (0..4)
        .map(|index| {
            format!(
                "write -q -P {} {} {}",
                pattern + index,
                place(index),
                33 << 10
            )
        })
        .collect();
    let start = (14 + round % 2) * (64 << 10);
    commands.push(format!(
        "write -q -P {} {} 512",
        pattern + 5,
        place(5) + 1024
    ));
    let compressed = if compressed { "-c " } else { "" };
    commands.push(format!(
        "write -q {compressed}-P {} {start} 16k",
        pattern + 6
    ));
    let start = start + (16 << 10);
    commands.push(format!(
        "write -q {compressed}-P {} {start} 16k",
        pattern + 7
    ));
    commands.push(format!("write -q -z {} 40k", place(8)));
    commands.push(format!("discard -q {} 64k", place(9)));
    commands
}
