// The images that this page keeps in the browser's own file system: what is there, and what is known of each.
//
// An image is whatever lies in the folder of images, so the list needs no catalogue that could be lost. What the page
// knows besides lies in a file of its own beside it, which is always written before the image, and replaced in one
// step. What is not finished lies in a third folder, and is moved when it is.

import { opfs, OxcowError, type StorageEstimate } from 'oxcow';

import type { FileMark } from './mark.js';
import { baseName } from './words.js';

const IMAGES = 'oxcow/images';
const ABOUT = 'oxcow/about';
const UNFINISHED = 'oxcow/unfinished';

/** What is remembered of a file on a server: that it is the same when it is asked again. */
export interface UrlMark {
  url: string;
  size: number;
  etag?: string;
  lastModified?: string;
}

/** Which state came from which; the format itself does not say. */
export interface Lineage {
  /** For each snapshot's id the one that the disk was at when it was taken. */
  parents: Record<string, string | null>;
  /** The snapshot that the active state came from. */
  current: string | null;
}

/** What an image's own bytes do not tell. */
export interface About {
  /** The files that it was made over, by who asks for them; see `wantedKey`. */
  files?: Record<string, FileMark>;
  /** Where a clone is filled from; gone when it is full. */
  url?: UrlMark;
  lineage?: Lineage;
}

export interface StoredImage {
  name: string;
  path: string;
  size: number;
  /** Milliseconds since 1970. */
  lastModified: number;
  about: About;
}

/** A file handle of the OPFS can be moved; TypeScript does not know that yet. */
interface Movable extends FileSystemFileHandle {
  move(folder: FileSystemDirectoryHandle, name: string): Promise<void>;
}

export const store = {
  path: (name: string) => `${IMAGES}/${name}`,

  async list(): Promise<StoredImage[]> {
    const files = await opfs.list(IMAGES);
    return Promise.all(
      files.map(async (file) => {
        const name = baseName(file.path);
        return { ...file, name, about: await this.about(name) };
      }),
    );
  },

  estimate: (): Promise<StorageEstimate> => opfs.estimate(),

  /** Asks the browser to keep what is stored; it may say no, and everything works all the same. */
  async persist(): Promise<void> {
    await opfs.persist().catch(() => false);
  },

  /** What is known of an image; nothing where that was lost. */
  async about(name: string): Promise<About> {
    try {
      return JSON.parse(await (await opfs.file(`${ABOUT}/${name}.json`)).text()) as About;
    } catch {
      return {};
    }
  },

  async setAbout(name: string, about: About): Promise<void> {
    const file = await (await folder(ABOUT)).getFileHandle(`${name}.json`, { create: true });
    const writable = await file.createWritable();
    await writable.write(JSON.stringify(about));
    await writable.close(); // Only now the old content is replaced.
  },

  /** A name that no stored image has, nor any of `others`, as near to `wanted` as can be. */
  async freshName(wanted: string, others: readonly string[] = []): Promise<string> {
    const plain = baseName(wanted).replace(/[\u0000-\u001f<>"|?*]/g, '_') || 'disk.qcow2';
    const [, stem, ending] = /^(.+?)(\.[^.]*)?$/.exec(plain) as RegExpExecArray;
    const taken = new Set([...others, ...(await opfs.list(IMAGES)).map(({ path }) => baseName(path))]);
    for (let number = 1; ; number += 1) {
      const name = `${stem}${number === 1 ? '' : `-${number}`}${ending ?? ''}`;
      if (!taken.has(name)) return name;
    }
  },

  /** Fails with `busy` while the image is open anywhere. */
  async remove(name: string): Promise<void> {
    await opfs.remove(this.path(name));
    await opfs.remove(`${ABOUT}/${name}.json`).catch(() => {}); // Without its image it means nothing.
  },

  async rename(name: string, wanted: string): Promise<string> {
    const about = await this.about(name);
    // An image of the same name as the file below it would seem to be its own backing file.
    const fresh = await this.freshName(wanted, Object.values(about.files ?? {}).map(({ name }) => name));
    await this.setAbout(fresh, about);
    await move(this.path(name), IMAGES, fresh);
    await opfs.remove(`${ABOUT}/${name}.json`).catch(() => {});
    return fresh;
  },

  /** The image as a file, for a download; nobody may be writing to it. */
  file: (name: string): Promise<File> => opfs.file(`${IMAGES}/${name}`),

  /** Gives `work` a path to write to. What is left there when it is done is removed, also after a crash. */
  async unfinished<T>(work: (path: string) => Promise<T>): Promise<T> {
    await folder(UNFINISHED);
    const path = `${UNFINISHED}/${crypto.randomUUID()}`;
    return navigator.locks.request(path, async () => {
      try {
        return await work(path);
      } finally {
        await opfs.remove(path).catch(() => {}); // Not begun, or finished and moved.
      }
    });
  },

  /** Makes a stored image of what was finished at `path`. */
  async adopt(path: string, name: string, about: About): Promise<void> {
    await folder(IMAGES);
    await this.setAbout(name, about);
    await move(path, IMAGES, name);
  },

  /** Writes a file as it is to `path`. */
  async copy(file: File, path: string, options: { signal: AbortSignal; onProgress(done: number, total: number): void }): Promise<void> {
    const target = await (await folder(UNFINISHED)).getFileHandle(baseName(path), { create: true });
    const writable = await target.createWritable();
    let done = 0;
    const counting = new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(chunk, controller) {
        controller.enqueue(chunk);
        done += chunk.byteLength;
        options.onProgress(done, file.size);
      },
    });
    try {
      await file.stream().pipeThrough(counting).pipeTo(writable, { signal: options.signal });
    } catch (error) {
      if (options.signal.aborted) throw new OxcowError('cancelled', 'Operation cancelled');
      if (error instanceof DOMException && error.name === 'QuotaExceededError') {
        throw new OxcowError('no-space', 'The browser has no room for the copy', { cause: error });
      }
      throw new OxcowError('io', `“${file.name}” could not be copied: ${String(error)}`, { cause: error });
    }
  },

  /** Removes what crashes have left behind. What another tab is at is locked. */
  async sweep(): Promise<void> {
    for (const { path } of await opfs.list(UNFINISHED)) {
      await navigator.locks.request(path, { ifAvailable: true }, async (lock) => {
        if (lock) await opfs.remove(path).catch(() => {}); // The next sweep tries again.
      });
    }
  },
};

async function folder(path: string): Promise<FileSystemDirectoryHandle> {
  let directory = await navigator.storage.getDirectory();
  for (const name of path.split('/')) directory = await directory.getDirectoryHandle(name, { create: true });
  return directory;
}

async function move(path: string, to: string, name: string): Promise<void> {
  const from = await folder(path.slice(0, path.lastIndexOf('/')));
  const file = (await from.getFileHandle(baseName(path))) as Movable;
  try {
    await file.move(await folder(to), name);
  } catch (error) {
    if (error instanceof DOMException && error.name === 'NoModificationAllowedError') {
      throw new OxcowError('busy', `“${baseName(path)}” is open elsewhere`, { cause: error });
    }
    throw error;
  }
}
