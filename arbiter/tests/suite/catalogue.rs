use petaflop_arbiter::catalogue::{Catalogue, Vendor};

fn key(row: Option<&petaflop_arbiter::catalogue::Accelerator>) -> &str {
    row.map_or("-", |row| row.key.as_str())
}

#[test]
fn every_row_of_the_table_is_read() {
    let catalogue = Catalogue::embedded();
    assert_eq!(catalogue.rows().len(), 56);
    let h100 = catalogue.get("H100-SXM").expect("it is there");
    assert_eq!(h100.vendor, Vendor::Nvidia);
    assert_eq!(h100.memory_gb, 80.0);
    assert_eq!(h100.stacks, ["cuda", "vulkan"]);
    assert_eq!(h100.compute_capability(), Some((9, 0)));
    assert_eq!(catalogue.get("B300").and_then(|row| row.compute_capability()), Some((10, 3)));
    assert_eq!(catalogue.get("MI300X").and_then(|row| row.compute_capability()), None);
}

#[test]
fn devices_are_known_by_every_name_they_go_by() {
    let catalogue = Catalogue::embedded();
    for (name, wanted) in [
        ("NVIDIA-H100-80GB-HBM3", "H100-SXM"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA-A100-SXM4-80GB", "A100-SXM-80"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM-40"),
        ("NVIDIA-A10G", "A10G"),
        ("NVIDIA A10", "-"),
        ("Tesla-T4", "T4"),
        ("Tesla-T4-SHARED", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA-GeForce-RTX-4090", "RTX4090"),
        ("AMD_Instinct_MI300X_OAM", "MI300X"),
        ("Instinct_MI210", "MI210"),
        ("AMD Instinct MI300X OAM", "MI300X"),
        ("AMD_Radeon_Graphics", "-"),
        ("Apple M4 Max", "M4-Max-40"),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "-"),
        ("h100-sxm", "H100-SXM"),
        ("", "-"),
        ("🦀", "-"),
    ] {
        assert_eq!(key(catalogue.by_device_name(name)), wanted, "{name}");
    }
    for (id, wanted) in [("74a1", "MI300X"), ("0x74A5", "MI325X"), ("ffff", "-")] {
        assert_eq!(key(catalogue.by_amd_device_id(id)), wanted, "{id}");
    }
    for (id, wanted) in [
        ("NVIDIA H200", "H200-SXM"),
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("nvidia h200", "-"), // RunPod's ids are exact
    ] {
        assert_eq!(key(catalogue.by_runpod_id(id)), wanted, "{id}");
    }
}

#[test]
fn aws_instance_types_lead_to_their_devices() {
    let catalogue = Catalogue::embedded();
    for (name, wanted) in [
        ("p5.48xlarge", "H100-SXM"),
        ("p5e.48xlarge", "H200-SXM"),
        ("p4d.24xlarge", "A100-SXM-40"),
        ("p4de.24xlarge", "A100-SXM-80"),
        ("g6f.large", "L4"),
        ("gr6.4xlarge", "L4"),
        ("g5g.xlarge", "T4g"),
        ("p3dn.24xlarge", "V100-SXM2-32"),
        ("trn1n.32xlarge", "Trainium1"),
        ("m7i.large", "-"),
        ("p5", "-"),
    ] {
        assert_eq!(key(catalogue.by_aws_instance_type(name)), wanted, "{name}");
    }
}

#[test]
fn a_wrong_table_is_refused_with_line_and_column() {
    let good = include_str!("../../data/gpus.csv");
    let second = good.lines().nth(1).expect("a row");
    let table = |row: &str| {
        let header = good.lines().next().expect("a header");
        Catalogue::parse(&format!("{header}\n{second}\n{row}\n")).expect_err(row).to_string()
    };
    let other = second.replacen("H100-SXM,", "X,", 1);
    for (row, says) in [
        (second.to_owned(), "line 3: H100-SXM is there twice"),
        (
            other.replacen("nvidia,", "nvidea,", 1),
            "line 3, column vendor: expected nvidia, amd, apple, intel or aws, found \"nvidea\"",
        ),
        (
            other.replacen(",80,", ",lots,", 1),
            "line 3, column vram_gb: expected a number above 0, or nothing, found \"lots\"",
        ),
        (other.replacen(",80,", ",NaN,", 1), "column vram_gb"),
        (other.replacen(",80,", ",,", 1), "column vram_gb: expected a number above 0"),
        (other.replacen(",high,", ",sure,", 1), "column confidence"),
        ("a,b".to_owned(), "accelerator catalogue"),
    ] {
        let error = table(&row);
        assert!(error.contains(says), "{error}");
    }
    assert!(
        Catalogue::parse("gpu,vendor\n")
            .expect_err("columns are missing")
            .to_string()
            .contains("column arch: expected a column of this name")
    );
}
