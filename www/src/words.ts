// Numbers and names as a person reads them, with the exact value beside.

import type { Size } from 'oxcow';

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/** `10 GiB`, `1.5 MiB`, `512 bytes`: to the tenth, as the engine's own sentences have it. */
export function size(bytes: Size): string {
  let value = Number(bytes);
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  if (unit === 0) return value === 1 ? '1 byte' : `${value} bytes`;
  return `${trim(value.toFixed(1))} ${UNITS[unit]}`;
}

function trim(digits: string): string {
  return digits.replace(/\.0$/, '');
}

/** `10,737,418,240 bytes`. */
export function exact(bytes: Size): string {
  return `${count(bytes)} ${bytes == 1 ? 'byte' : 'bytes'}`;
}

/** `10,737,418,240`. */
export function count(value: Size): string {
  return value.toLocaleString('en-US');
}

/** `3 snapshots`, `1 snapshot`. */
export function counted(value: Size, one: string, many = `${one}s`): string {
  return `${count(value)} ${value == 1 ? one : many}`;
}

/** `0x50000`. */
export function hex(offset: Size): string {
  return `0x${offset.toString(16)}`;
}

/** A share in percent, never 0 or 100 unless it is exactly that. */
export function percent(part: Size, whole: Size): string {
  const [a, b] = [Number(part), Number(whole)];
  if (b === 0 || a === 0) return '0%';
  if (a === b) return '100%';
  const value = (a / b) * 100;
  if (value < 0.1) return 'under 0.1%';
  if (value > 99.9 && value < 100) return 'over 99.9%';
  return `${value >= 10 ? Math.round(value) : trim(value.toFixed(1))}%`;
}

/** When a snapshot was taken, in the reader's own time zone. */
export function date(seconds: number): string {
  if (seconds === 0) return 'not recorded';
  return new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
}

/** How long the guest had been running: `3:25:45.123`. */
export function duration(seconds: number, nanoseconds: number): string {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const two = (value: number) => String(value).padStart(2, '0');
  return `${h}:${two(m)}:${two(s)}.${String(Math.floor(nanoseconds / 1e6)).padStart(3, '0')}`;
}

/**
 * Reads an offset as people write it: `0x1000`, `4096`, `4 KiB`, `2G`, `7s` (sectors of 512 bytes).
 * `undefined` where it is none.
 */
export function parseOffset(text: string): bigint | undefined {
  const parts = /^(?:0x([0-9a-f]+)|([0-9]+)\s*(?:([kmgtpe])(?:i?b)?|(s|sectors?)|b|bytes?)?)$/i.exec(
    text.trim().replace(/(?<=[0-9a-f])[_,](?=[0-9a-f])/gi, ''),
  );
  if (!parts) return undefined;
  const [, hexadecimal, decimal, unit, sectors] = parts;
  if (hexadecimal !== undefined) return BigInt(`0x${hexadecimal}`);
  const value = BigInt(decimal ?? '0');
  if (sectors) return value * 512n;
  return unit ? value << (10n * BigInt('kmgtpe'.indexOf(unit.toLowerCase()) + 1)) : value;
}

/** The part of a path behind its last slash, of either kind. */
export function baseName(path: string): string {
  return path.replace(/^.*[/\\:]/, '');
}

const FORMATS: Record<string, [name: string, what: string]> = {
  qcow2: ['qcow2', 'QEMU’s copy-on-write disk image'],
  raw: ['raw', 'the disk’s bytes as they are, without a format of its own'],
  qcow: ['QCOW version 1', 'an old QEMU disk image'],
  qed: ['QED', 'an old QEMU disk image'],
  vmdk: ['VMDK', 'a VMware disk image'],
  vdi: ['VDI', 'a VirtualBox disk image'],
  vhdx: ['VHDX', 'a Hyper-V disk image'],
  vpc: ['VHD', 'a Virtual PC or Azure disk image'],
  vhd: ['VHD', 'a Virtual PC or Azure disk image'],
  luks: ['LUKS', 'an encrypted disk'],
  parallels: ['Parallels', 'a Parallels disk image'],
  bochs: ['Bochs', 'a Bochs disk image'],
  cloop: ['cloop', 'a compressed loop image'],
  dmg: ['DMG', 'an Apple disk image'],
  iso: ['ISO 9660', 'an optical disc image'],
  gpt: ['GPT', 'a disk with a GUID partition table'],
  mbr: ['MBR', 'a disk with a DOS partition table'],
};

/** A format's name as people know it. */
export function formatName(format: string): string {
  return FORMATS[format]?.[0] ?? format;
}

/** What a format is, in words that continue a sentence. */
export function formatWords(format: string): string {
  return FORMATS[format]?.[1] ?? `a file of format “${format}”`;
}

/** A message as a sentence of its own. */
export function sentence(message: string): string {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** A file's name without the ending of a disk image. */
export function stemOf(name: string): string {
  return name.replace(/\.(qcow2|qcow|img|raw)$/i, '') || 'disk';
}

/**
 * Reads a size as people write it, `20 GiB` or `512M`, as for an offset; parts of a unit too: `1.5G`.
 * `undefined` where it is none.
 */
export function parseSize(text: string): bigint | undefined {
  const parts = /^([0-9]+)\.([0-9]{1,3})\s*([kmgtpe])(?:i?b)?$/i.exec(text.trim());
  if (!parts) return parseOffset(text);
  const [, whole = '0', part = '0', unit = 'k'] = parts;
  const shift = 10n * BigInt('kmgtpe'.indexOf(unit.toLowerCase()) + 1);
  const bytes = (BigInt(whole + part) << shift) / 10n ** BigInt(part.length);
  return (bytes / 512n) * 512n;
}
