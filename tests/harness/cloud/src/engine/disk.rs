//! Disks that are things of their own: they have ids, bill under them, and may outlive the machine
//! that they were made with.

use jiff::Timestamp;

use super::bill::{Item, Price};
use super::{Engine, Refusal};

/// A disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The provider's id.
    pub id: String,
    /// GB.
    pub size: u32,
    /// Machine that it was made with.
    pub made_with: String,
    /// Machine that it is attached to.
    pub machine: Option<String>,
    /// It goes when its machine goes.
    pub dies_with_machine: bool,
    /// When it was made.
    pub created: Timestamp,
    /// When it was deleted.
    pub deleted: Option<Timestamp>,
}

impl Engine {
    /// Makes a disk of so many GB, attached to a machine, at a price in micro-dollars a GB and month.
    pub fn attach(
        &mut self,
        id: &str,
        machine: &str,
        size: u32,
        dies_with_machine: bool,
        price: i64,
    ) {
        let created = self.now;
        let monthly = Price::Monthly(price.saturating_mul(i64::from(size)));
        self.biller.open(id, Item::Volume, monthly, created);
        self.disks.push(Disk {
            id: id.to_owned(),
            size,
            made_with: machine.to_owned(),
            machine: Some(machine.to_owned()),
            dies_with_machine,
            created,
            deleted: None,
        });
    }

    /// Every disk there ever was.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Deletes a disk.
    ///
    /// # Errors
    /// When there is none, or a machine has it.
    pub fn delete_disk(&mut self, id: &str) -> Result<(), Refusal> {
        let now = self.now;
        let there = self.disks.iter_mut().find(|disk| disk.id == id && disk.deleted.is_none());
        let disk = there.ok_or(Refusal::Unknown)?;
        if disk.machine.is_some() {
            return Err(Refusal::State);
        }
        disk.deleted = Some(now);
        self.biller.close(id, now, false);
        Ok(())
    }

    /// A machine is gone: its disks go with it, or are nobody's.
    pub(super) fn leave_disks(&mut self, machine: &str) {
        let now = self.now;
        let own = self.disks.iter_mut().filter(|d| d.machine.as_deref() == Some(machine));
        for disk in own {
            disk.machine = None;
            if disk.dies_with_machine {
                disk.deleted = Some(now);
                self.biller.close(&disk.id, now, false);
            }
        }
    }
}
