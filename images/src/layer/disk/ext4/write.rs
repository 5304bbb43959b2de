//! Writes the disk: superblock, groups, inodes, blocks.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::FileType;

use super::super::BLOCK;
use super::super::scan::{Node, kind};
use super::super::writer::Writer;
use super::extents;
use super::format::{INODE, SUPERBLOCK, bitmap, descriptor, directory, inode, superblock};
use super::layout::{GROUP, Geometry, Inode, RESERVED, has_blocks, number, place};
use crate::layer::{LayerError, Limits};

/// Writes `nodes`, which were found in `tree`. Returns the size of the disk, bytes.
pub fn write(tree: &OwnedFd, disk: File, nodes: &[Node], limits: &Limits) -> Result<u64, LayerError> {
    let (inodes, geometry) = place(nodes)?;
    let size = geometry.blocks * BLOCK;
    let disk = Writer::new(tree, disk, size, geometry.used * BLOCK, limits)?;
    let mut packer = Packer { inodes: &inodes, geometry, disk };
    packer.groups()?;
    for (index, inode) in inodes.iter().enumerate() {
        packer.inode(inode, index as u32)?;
    }
    for (index, inode) in inodes.iter().enumerate() {
        packer.blocks(inode, index as u32)?;
    }
    packer.disk.finish()?;
    Ok(size)
}

struct Packer<'a> {
    inodes: &'a [Inode<'a>],
    geometry: Geometry,
    disk: Writer<'a>,
}

impl Packer<'_> {
    /// The superblock, and what describes the groups.
    fn groups(&mut self) -> Result<(), LayerError> {
        let geometry = self.geometry;
        let per_group = geometry.inodes_per_group;
        let last = u64::from(number(self.inodes.len() as u32 - 1).max(RESERVED));
        // Numbers count from one.
        let used = |group: u64| last.saturating_sub(group * per_group).min(per_group);
        let mut directories = vec![0; geometry.groups as usize];
        for (index, inode) in self.inodes.iter().enumerate() {
            if kind(inode.node.mode) == FileType::Directory {
                directories[(u64::from(number(index as u32) - 1) / per_group) as usize] += 1;
            }
        }
        let free_inodes = geometry.groups * per_group - last;
        let mut descriptors = Vec::new();
        for (group, directories) in (0..).zip(directories) {
            descriptors.extend(descriptor(&geometry, group, per_group - used(group), directories));
        }
        self.disk.put(SUPERBLOCK, &superblock(&geometry, free_inodes))?;
        self.disk.put(BLOCK, &descriptors)?;
        for group in 0..geometry.groups {
            let from = group * GROUP;
            let [used, count] = [geometry.used, geometry.blocks].map(|end| end.saturating_sub(from).min(GROUP));
            self.disk.put(geometry.block_bitmap(group) * BLOCK, &bitmap(used, count))?;
        }
        for group in 0..geometry.groups {
            self.disk.put(geometry.inode_bitmap(group) * BLOCK, &bitmap(used(group), per_group))?;
        }
        Ok(())
    }

    fn inode(&mut self, place: &Inode<'_>, index: u32) -> Result<(), LayerError> {
        let number = u64::from(number(index) - 1);
        // The tables of all groups lie one behind the other.
        let at = self.geometry.inode_table(0) * BLOCK + number * INODE;
        let (root, _) = extents::tree(&place.extents, place.tree);
        self.disk.put(at, &inode(place, &root))
    }

    fn blocks(&mut self, inode: &Inode<'_>, index: u32) -> Result<(), LayerError> {
        if has_blocks(inode.node) {
            match kind(inode.node.mode) {
                FileType::Directory => self.memory(inode, &self.directory(inode.node, index))?,
                FileType::Symlink => self.memory(inode, &inode.node.target)?,
                _ => self.file(inode)?,
            }
            let (_, tree) = extents::tree(&inode.extents, inode.tree);
            self.disk.put(u64::from(inode.tree) * BLOCK, &tree)?;
        }
        match &inode.xattrs {
            Some((block, bytes)) => self.disk.put(u64::from(*block) * BLOCK, bytes),
            None => Ok(()),
        }
    }

    fn directory(&self, node: &Node, index: u32) -> Vec<u8> {
        let own = [(b".".as_slice(), index), (b"..", node.parent)];
        let entries = node.entries.iter().map(|(name, child)| (&**name, *child));
        let kind_of = |index: u32| kind(self.inodes[index as usize].node.mode);
        directory(own.into_iter().chain(entries).map(|(name, index)| (name, number(index), kind_of(index))))
    }

    /// Writes content that is at hand.
    fn memory(&mut self, inode: &Inode<'_>, content: &[u8]) -> Result<(), LayerError> {
        for extent in &inode.extents {
            let from = extent.logical as usize * BLOCK as usize;
            let end = content.len().min(from + usize::from(extent.length) * BLOCK as usize);
            self.disk.put(u64::from(extent.physical) * BLOCK, &content[from..end])?;
        }
        Ok(())
    }

    fn file(&mut self, inode: &Inode<'_>) -> Result<(), LayerError> {
        if inode.extents.is_empty() {
            return Ok(());
        }
        let mut file = self.disk.file(inode.node)?;
        for extent in &inode.extents {
            let from = u64::from(extent.logical) * BLOCK;
            let length = (u64::from(extent.length) * BLOCK).min(inode.size - from);
            self.disk.copy(&mut file, inode.node, from, length, u64::from(extent.physical) * BLOCK)?;
        }
        Ok(())
    }
}
