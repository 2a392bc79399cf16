//! The types of the GraphQL API, so that a field that is not there is refused before anything is
//! done.

use super::parse::Field;

/// Types by name: each field with the type of its value, or nothing where it has no fields.
type Types = &'static [(&'static str, &'static [(&'static str, &'static str)])];

const TYPES: Types = &[
    (
        "Query",
        &[
            ("gpuTypes", "GpuType"),
            ("dataCenters", "DataCenter"),
            ("pod", "Pod"),
            ("myself", "User"),
        ],
    ),
    (
        "Mutation",
        &[
            ("podFindAndDeployOnDemand", "Pod"),
            ("podRentInterruptable", "Pod"),
            ("podResume", "Pod"),
            ("podBidResume", "Pod"),
            ("podStop", "Pod"),
            ("podTerminate", ""),
            ("saveRegistryAuth", "RegistryAuth"),
            ("deleteRegistryAuth", ""),
        ],
    ),
    ("User", &[("id", ""), ("pods", "Pod"), ("clientBalance", "")]),
    ("RegistryAuth", &[("id", ""), ("name", "")]),
    (
        "GpuType",
        &[
            ("id", ""),
            ("displayName", ""),
            ("manufacturer", ""),
            ("memoryInGb", ""),
            ("secureCloud", ""),
            ("communityCloud", ""),
            ("securePrice", ""),
            ("communityPrice", ""),
            ("secureSpotPrice", ""),
            ("communitySpotPrice", ""),
            ("maxGpuCount", ""),
            ("maxGpuCountSecureCloud", ""),
            ("maxGpuCountCommunityCloud", ""),
            ("lowestPrice", "LowestPrice"),
        ],
    ),
    (
        "LowestPrice",
        &[
            ("gpuTypeId", ""),
            ("minimumBidPrice", ""),
            ("uninterruptablePrice", ""),
            ("minVcpu", ""),
            ("minMemory", ""),
            ("stockStatus", ""),
            ("countryCode", ""),
            ("maxUnreservedGpuCount", ""),
            ("availableGpuCounts", ""),
        ],
    ),
    (
        "DataCenter",
        &[("id", ""), ("name", ""), ("listed", ""), ("gpuAvailability", "GpuAvailability")],
    ),
    ("GpuAvailability", &[("gpuTypeId", ""), ("available", ""), ("stockStatus", "")]),
    (
        "Pod",
        &[
            ("id", ""),
            ("name", ""),
            ("desiredStatus", ""),
            ("lastStatusChange", ""),
            ("costPerHr", ""),
            ("imageName", ""),
            ("env", ""),
            ("gpuCount", ""),
            ("vcpuCount", ""),
            ("memoryInGb", ""),
            ("machineId", ""),
            ("podType", ""),
            ("uptimeSeconds", ""),
            ("runtime", "Runtime"),
            ("machine", "Machine"),
        ],
    ),
    ("Runtime", &[("uptimeInSeconds", ""), ("ports", "Port")]),
    (
        "Port",
        &[("ip", ""), ("isIpPublic", ""), ("privatePort", ""), ("publicPort", ""), ("type", "")],
    ),
    ("Machine", &[("podHostId", ""), ("gpuDisplayName", ""), ("location", "")]),
];

/// The type of a field's value: `None`: no such field; empty: it has no fields of its own.
pub(crate) fn field(kind: &str, name: &str) -> Option<&'static str> {
    let (_, fields) = TYPES.iter().find(|(known, _)| *known == kind)?;
    fields.iter().find(|(known, _)| *known == name).map(|(_, inner)| *inner)
}

/// Every complaint about what is asked of a type.
pub(crate) fn complaints(kind: &str, fields: &[Field]) -> Vec<String> {
    let mut complaints = Vec::new();
    for asked in fields {
        let name = &asked.name;
        match field(kind, name) {
            None => complaints.push(format!("Cannot query field \"{name}\" on type \"{kind}\".")),
            Some("") if !asked.fields.is_empty() => {
                complaints.push(format!("Field \"{name}\" must not have a selection."));
            }
            Some("") => {}
            Some(_) if asked.fields.is_empty() => {
                complaints.push(format!("Field \"{name}\" must have a selection of subfields."));
            }
            Some(inner) => complaints.extend(self::complaints(inner, &asked.fields)),
        }
    }
    complaints
}
