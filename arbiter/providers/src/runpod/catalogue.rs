//! RunPod's catalogue: bytes in, types of accelerators and processors out. Pure. An entry that
//! cannot be read hides no other.

use petaflop_arbiter::money::UsdPerHour;
use serde_json::Value;

use super::dollars;
use super::thing::Cloud;

/// A type of accelerator in one cloud, at the size that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gpu {
    /// Used in create; case and blanks matter.
    pub(super) id: String,
    /// Gigabytes of one, as RunPod says.
    pub(super) memory_gb: Option<u32>,
    /// One of them, for an hour.
    pub(super) price: UsdPerHour,
    /// Whether it can be had now.
    pub(super) in_stock: bool,
    /// Data centres in which it can be had now, where that is said.
    pub(super) data_centers: Vec<String>,
}

/// A flavour of processors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cpu {
    /// Used in create.
    pub(super) id: String,
    /// Fewest and most of them in a pod.
    pub(super) vcpus: (u32, u32),
    /// Gigabytes of memory that come with each.
    pub(super) ram_gb_per_vcpu: f64,
    /// One of them, for an hour, in the Secure cloud, where alone they are.
    pub(super) price_per_vcpu: UsdPerHour,
    /// Whether it can be had now at the size that was asked for.
    pub(super) in_stock: bool,
    /// Data centres in which it can be had now, where that is said.
    pub(super) data_centers: Vec<String>,
}

/// Accelerators that this cloud offers `count` of in one machine. A price counts only where the
/// type says that it is in that cloud, and 0 is no price.
///
/// # Errors
/// When this is no catalogue, in words.
pub(super) fn gpus(body: &[u8], cloud: Cloud, count: u32) -> Result<Vec<Gpu>, String> {
    let all = entries(body, &["gpus"])?;
    Ok(all.iter().filter_map(|entry| gpu(entry, cloud, count)).collect())
}

fn gpu(entry: &Value, cloud: Cloud, count: u32) -> Option<Gpu> {
    let key = match cloud {
        Cloud::Secure => "secure",
        Cloud::Community => "community",
    };
    let offered = entry.get(key).and_then(Value::as_bool).unwrap_or(false);
    // How large machines are, not how many there are.
    let largest = entry.get("maxCount").and_then(|most| most.get(key)).and_then(whole);
    if !offered || largest.is_some_and(|most| count > most) {
        return None;
    }
    Some(Gpu {
        id: text(entry, "id")?,
        memory_gb: entry.get("memory").and_then(whole).filter(|gb| *gb > 0),
        price: dollars::hourly(entry.get("price")?.get(key)?)?,
        in_stock: in_stock(entry),
        data_centers: data_centers(entry),
    })
}

/// Flavours of processors.
///
/// # Errors
/// When this is no catalogue, in words.
pub(super) fn cpus(body: &[u8]) -> Result<Vec<Cpu>, String> {
    let all = entries(body, &["cpus", "cpuFlavors"])?;
    Ok(all.iter().filter_map(cpu).collect())
}

fn cpu(entry: &Value) -> Option<Cpu> {
    let limit = |which: &str| entry.get("vcpu")?.get(which).and_then(whole);
    let ram = entry.get("ramGbPerVcpu").and_then(Value::as_f64);
    Some(Cpu {
        id: text(entry, "id")?,
        vcpus: (limit("min").unwrap_or(1), limit("max").unwrap_or(u32::MAX)),
        ram_gb_per_vcpu: ram.filter(|gb| *gb > 0.0 && *gb < 1e6)?,
        price_per_vcpu: dollars::hourly(entry.get("price")?.get("securePerVcpu")?)?,
        // Descriptions of the API differ on whether flavours tell it; a refused create costs nothing.
        in_stock: entry.get("availability").is_none() || in_stock(entry),
        data_centers: data_centers(entry),
    })
}

/// The list under one of these keys.
fn entries(body: &[u8], keys: &[&str]) -> Result<Vec<Value>, String> {
    let mut body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let list = keys.iter().find_map(|key| body.get_mut(*key).map(Value::take));
    match list {
        Some(Value::Array(list)) => Ok(list),
        _ => Err(format!("no list {:?} in the answer", keys[0])),
    }
}

/// A hint, and no reservation. Nothing said is nothing to be had: it was asked for.
fn in_stock(entry: &Value) -> bool {
    let stock = entry.get("availability").and_then(Value::as_str).unwrap_or("NONE");
    ["LOW", "MEDIUM", "HIGH"].iter().any(|some| stock.eq_ignore_ascii_case(some))
}

fn data_centers(entry: &Value) -> Vec<String> {
    let all = entry.get("dataCenters").and_then(Value::as_array).into_iter().flatten();
    all.filter(|center| in_stock(center)).filter_map(|center| text(center, "id")).collect()
}

fn text(entry: &Value, key: &str) -> Option<String> {
    entry.get(key)?.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned)
}

fn whole(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(gpus: Value) -> Vec<u8> {
        json!({ "gpus": gpus }).to_string().into_bytes()
    }

    fn rtx4090() -> Value {
        json!({
            "id": "NVIDIA GeForce RTX 4090", "name": "RTX 4090", "pool": "ADA_24",
            "manufacturer": "NVIDIA", "memory": 24, "secure": true, "community": true,
            "price": { "secure": 0.74, "community": 0.34, "serverless": 1.1 },
            "maxCount": { "secure": 8, "community": 4 }, "availability": "MEDIUM",
            "dataCenters": [{ "id": "EU-RO-1", "name": "EU-RO-1", "availability": "LOW" },
                            { "id": "US-TX-3", "name": "US-TX-3", "availability": "NONE" }],
        })
    }

    #[test]
    fn each_cloud_has_its_own_price_and_its_own_largest_machine() {
        let body = body(json!([rtx4090()]));
        let secure = gpus(&body, Cloud::Secure, 8).expect("a catalogue");
        assert_eq!(secure[0].price.micros(), 740_000);
        assert_eq!(secure[0].memory_gb, Some(24));
        assert_eq!(secure[0].data_centers, ["EU-RO-1"]);
        let community = gpus(&body, Cloud::Community, 4).expect("a catalogue");
        assert_eq!(community[0].price.micros(), 340_000);
        assert!(gpus(&body, Cloud::Community, 8).expect("a catalogue").is_empty());
    }

    #[test]
    fn a_price_counts_only_where_the_type_is_offered_and_0_is_no_price() {
        // As captured on 2026-08-25: a price for a cloud that does not have it, and a price of 0.
        let mi300x = json!({ "id": "AMD Instinct MI300X OAM", "memory": 192, "secure": true,
            "community": false, "price": { "secure": 2.39, "community": 0.5 }, "availability": "LOW" });
        let a100 = json!({ "id": "NVIDIA A100-SXM4-40GB", "memory": 40, "secure": true,
            "community": true, "price": { "secure": 0, "community": 1.0 }, "availability": "LOW" });
        let body = body(json!([mi300x, a100]));
        let ids = |cloud| {
            let all = gpus(&body, cloud, 1).expect("a catalogue");
            all.into_iter().map(|gpu| gpu.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(Cloud::Secure), ["AMD Instinct MI300X OAM"]);
        assert_eq!(ids(Cloud::Community), ["NVIDIA A100-SXM4-40GB"]);
    }

    #[test]
    fn stock_that_is_not_told_is_none() {
        for (stock, there) in [
            (json!("HIGH"), true),
            (json!("Low"), true),
            (json!("NONE"), false),
            (json!(null), false),
            (json!("Out of Stock"), false),
            (json!(3), false),
        ] {
            let mut one = rtx4090();
            one["availability"] = stock.clone();
            let all = gpus(&body(json!([one])), Cloud::Secure, 1).expect("a catalogue");
            assert_eq!(all[0].in_stock, there, "{stock}");
        }
    }

    #[test]
    fn an_entry_that_cannot_be_read_hides_no_other() {
        let odd = [json!(null), json!(7), json!({}), json!({ "id": 5, "secure": true })];
        let mut all = odd.to_vec();
        all.push(rtx4090());
        assert_eq!(gpus(&body(json!(all)), Cloud::Secure, 1).expect("a catalogue").len(), 1);
        for no_catalogue in ["", "[]", "{}", "null", "<html>", r#"{"gpus":7}"#] {
            assert!(gpus(no_catalogue.as_bytes(), Cloud::Secure, 1).is_err(), "{no_catalogue}");
        }
    }

    #[test]
    fn processors_are_priced_one_by_one() {
        let body = json!({ "cpus": [{
            "id": "cpu5g", "name": "General", "group": "General Purpose",
            "vcpu": { "min": 2, "max": 32 }, "ramGbPerVcpu": 4,
            "price": { "securePerVcpu": 0.046, "serverlessPerVcpu": 0.05 }, "availability": "HIGH",
        }, { "id": "cpu0", "ramGbPerVcpu": 4, "price": { "securePerVcpu": 0 } }] });
        let all = cpus(body.to_string().as_bytes()).expect("a catalogue");
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].vcpus, all[0].price_per_vcpu.micros()), ((2, 32), 46_000));
        assert!(all[0].in_stock);
        let stock = |stock: Value| {
            let mut body = body.clone();
            body["cpus"][0]["availability"] = stock;
            cpus(body.to_string().as_bytes()).expect("a catalogue")[0].in_stock
        };
        assert!(!stock(json!("NONE")) && !stock(json!(null)));
        let mut silent = body.clone();
        silent["cpus"][0].as_object_mut().expect("an object").remove("availability");
        assert!(cpus(silent.to_string().as_bytes()).expect("a catalogue")[0].in_stock);
    }
}
