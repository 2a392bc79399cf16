//! Content-addressed artifacts over the `object_store` crate, and the reports
//! that outlive a job's machine.

pub mod report;
