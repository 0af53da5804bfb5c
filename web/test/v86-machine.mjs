// A PC in v86 that boots GRUB's rescue image, with a disk under test beside it, and what is on that disk. Also for
// tests in a browser, which drive the same machine from outside.

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as wait } from 'node:timers/promises';

import { withoutQemu } from './qemu.mjs';

/** What Debian's packages seabios and grub-rescue-pc install. */
export const FIRMWARE = {
  bios: '/usr/share/seabios/bios.bin',
  vgaBios: '/usr/share/seabios/vgabios-stdvga.bin',
  rescue: '/usr/lib/grub-rescue/grub-rescue-cdrom.iso',
};

/** By the names of the packages in package.json. */
export const V86_VERSIONS = ['v86', 'v86-older'];

function lacking() {
  if (withoutQemu) return withoutQemu;
  for (const path of Object.values(FIRMWARE)) if (!existsSync(path)) return `${path} is not there`;
  try {
    execFileSync('mtools', ['--version'], { stdio: 'ignore' });
  } catch {
    return 'mtools is not installed';
  }
  return false;
}

/** Why a machine cannot be tested here; `false` where it can. */
export const withoutMachine = lacking();

const MIB = 1 << 20;
const SIZE = 64 * MIB;
/** Where the partition begins, as mtools wants it said. */
const PARTITION = '@@1M';
export const HELLO = 'Hello from a FAT file system in a compressed qcow2';

/**
 * Makes `boot.qcow2`, GRUB's rescue image, and `base.qcow2`, a disk with a partition with FAT, on which there is a text
 * and a file that GRUB can save variables in. All of it is compressed.
 */
export function makeDisks(images) {
  writeFileSync(images.path('hello.txt'), `${HELLO}\n`);
  writeFileSync(images.path('env'), '# GRUB Environment Block\n'.padEnd(1024, '#'));
  const disk = Buffer.alloc(SIZE);
  // The one entry of the partition table: type FAT16 by LBA, from sector 2048 to the end; then the sector's signature.
  disk.set([0, 0xfe, 0xff, 0xff, 0x0e, 0xfe, 0xff, 0xff], 446);
  disk.writeUInt32LE(MIB / 512, 454);
  disk.writeUInt32LE((SIZE - MIB) / 512, 458);
  disk.set([0x55, 0xaa], 510);
  writeFileSync(images.path('base.raw'), disk);
  const fat = images.path('base.raw') + PARTITION;
  execFileSync('mformat', ['-i', fat, '-T', String((SIZE - MIB) / 512), '-h', '16', '-s', '63', '::']);
  execFileSync('mcopy', ['-i', fat, images.path('hello.txt'), images.path('env'), '::']);
  images.img('convert', '-c', '-f', 'raw', '-O', 'qcow2', 'base.raw', 'base.qcow2');
  images.img('convert', '-c', '-f', 'raw', '-O', 'qcow2', FIRMWARE.rescue, 'boot.qcow2');
}

/** A file's SHA-256. */
export function hashOf(path) {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

/** The variables that are saved on the disk in an image, or in a snapshot of it: by QEMU and mtools. */
export function savedIn(images, name, snapshot) {
  const at = snapshot === undefined ? [] : ['-l', `snapshot.name=${snapshot}`];
  images.img('convert', ...at, '-O', 'raw', name, 'judged.raw');
  const text = execFileSync('mtype', ['-i', images.path('judged.raw') + PARTITION, '::env'], { encoding: 'utf8' });
  const lines = text.split('\n').filter((line) => line.includes('='));
  return Object.fromEntries(lines.map((line) => line.split('=')));
}

/** A machine's screen and keyboard; `screen` gives its text, `press` types one character, both perhaps later. */
export class Console {
  constructor(screen, press) {
    this.screen = screen;
    this.press = press;
  }

  async see(what, seconds = 120) {
    let text = '';
    for (const end = performance.now() + seconds * 1000; performance.now() < end; await wait(20)) {
      text = await this.screen();
      if (what.test(text)) return text;
    }
    throw new Error(`${what} has not come up in ${seconds} s; there is:\n${text}`);
  }

  /** Types a line, each key when the one before has come up: a guest that is busy loses keys. */
  async type(line) {
    let typed = '';
    for (const key of line) {
      await this.press(key);
      typed += key;
      const shown = typed.trimEnd();
      await this.see({ test: (text) => text.trimEnd().endsWith(shown), toString: () => `"${shown}"` });
    }
  }

  /** Leaves GRUB's menu for its command line. */
  async boot() {
    await this.see(/automatically in/);
    await this.press('c');
    await this.see(/grub> *$/);
  }

  /** Has GRUB do a line, and gives the screen after it. */
  async command(line) {
    await this.type(line);
    await this.press('\n');
    const text = await this.see(/grub> *$/);
    if (/error:/.test(text)) throw new Error(text);
    return text;
  }

  /** Has GRUB keep a variable in a file of the disk under test. */
  save(name, value) {
    return this.command(`${name}=${value};save_env -f /env ${name}`);
  }
}
