import type { CustomSource } from '../types.js';

/** Bytes of the caller's own that can be written to. */
export interface CustomStorage extends CustomSource {
  /**
   * The length in bytes when the image is opened; from then on only the engine changes it. It is looked at again
   * after a write that failed, so a getter that tells the present length is best.
   */
  readonly size: number;
  /**
   * Writes all of `bytes` at byte `offset`; past the end it makes the storage longer, and what lies between reads as
   * zeros. `bytes` is the storage's to keep, unless it has `readInto`: then it may be the engine's own memory.
   * Several writes may be under way at once, never two to the same bytes. What is begun is never called back: when it
   * has settled, the bytes are there or the storage has failed.
   */
  write(offset: number, bytes: Uint8Array): void | Promise<void>;
  /**
   * Makes everything durable that was written before. Every promise that the engine gives rests on this one. A flush
   * that fails stops the image: nothing is known of what it should have covered.
   */
  flush(): void | Promise<void>;
  /**
   * Cuts or grows the storage to `size` bytes; new bytes read as zeros. Without it a storage can only grow, by writes
   * past its end.
   */
  truncate?(size: number): void | Promise<void>;
  /** Called when the image that was opened from it is closed. */
  close?(): void | Promise<void>;
}

/** A storage in memory. */
export interface MemoryStorage extends CustomStorage {
  /** All of its bytes, as one array. */
  bytes(): Uint8Array;
  /** All of its bytes; what was never written is not held in memory twice. */
  toBlob(): Blob;
}

/**
 * A file in the browser's own file system (OPFS), by its path in it: `images/disk.qcow2`. One tab at a time can have
 * it open for writing; everybody else is told so (`busy`).
 */
export interface OpfsFile {
  readonly opfs: string;
}

/** What an image can be written to. A `FileSystemFileHandle` has to be one of the OPFS. */
export type Storage = CustomStorage | OpfsFile | FileSystemFileHandle;
