//! The memory of a forked process: the same pages, none of them written in place by either.

use super::area::Source;
use super::{Memory, Result};
use crate::paging::tables::Rights;

impl Memory {
    /// A copy, as fork(2) makes it.
    pub fn fork(&mut self) -> Result<Self> {
        let mut child = Self::new(self.vm.clone())?;
        child.program_break = self.program_break;
        child.areas.clone_from(&self.areas);
        let mut protected = Vec::new();
        let passed = self.pass_on(&mut child, &mut protected);
        // The parent may have written through what the shadow tables hold.
        self.vm.zap(protected);
        passed.map(|()| child)
    }

    /// Gives a child its pages; of the private ones it puts into `protected` those that could be written until now.
    fn pass_on(&mut self, child: &mut Self, protected: &mut Vec<u64>) -> Result<()> {
        let vm = self.vm.clone();
        let memory = vm.arena.memory();
        for (start, area) in &child.areas.clone() {
            // Pages of files come back from the page cache; only what was written has to be passed on.
            let windows = matches!(area.source, Source::File(..) | Source::SharedFile(..));
            for (page, mapping) in self.space().pages(memory, *start, area.end) {
                if windows && vm.is_window(mapping.physical) {
                    continue;
                }
                let mut rights = mapping.rights;
                if area.is_private() && rights.write {
                    rights = Rights { write: false, ..rights };
                    let _ = self.space_mut().protect(memory, page, rights);
                    protected.push(mapping.physical);
                }
                vm.share(mapping.physical);
                child.map(page, mapping.physical, rights).inspect_err(|_| vm.release(vec![mapping.physical]))?;
            }
        }
        Ok(())
    }
}
