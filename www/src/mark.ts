// Recognises a file that was chosen before: an overlay is only good over exactly the bytes it was made over.

import { OxcowError } from 'oxcow';

import { size } from './words.js';

/** What is remembered of a file that was not kept itself. */
export interface FileMark {
  name: string;
  size: number;
  /** Milliseconds since 1970. */
  lastModified: number;
  /** SHA-256 of its first and last 64 KiB. */
  ends: string;
}

const END = 64 << 10;

export async function markOf(file: File): Promise<FileMark> {
  const { name, size, lastModified } = file;
  return { name, size, lastModified, ends: await endsOf(file) };
}

/** Fails with `changed` where `file` is not the one that was marked. */
export async function recognise(file: File, mark: FileMark): Promise<void> {
  const refuse = (how: string) => {
    const also = file.name === mark.name ? 'has changed since it was chosen' : `is not the “${mark.name}” that is wanted`;
    return new OxcowError(
      'changed',
      `“${file.name}” ${also}: ${how}. What was written over it would not fit any more, so it is not used; choose the file as it was`,
    );
  };
  if (file.size !== mark.size) throw refuse(`it was ${size(mark.size)} (${mark.size} bytes), and is ${size(file.size)} (${file.size} bytes)`);
  if ((await endsOf(file)) !== mark.ends) throw refuse('its content is different');
  if (file.lastModified !== mark.lastModified) {
    throw refuse(`it was last written on ${timeOf(mark.lastModified)}, and now on ${timeOf(file.lastModified)}`);
  }
}

async function endsOf(file: File): Promise<string> {
  const ends = new Blob([file.slice(0, END), file.slice(Math.max(END, file.size - END))]);
  const hash = await crypto.subtle.digest('SHA-256', await ends.arrayBuffer());
  return Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function timeOf(milliseconds: number): string {
  return new Date(milliseconds).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
}
