import type { Storage } from './storage/types.js';
import type { CheckReport, LongOptions, OpenOptions, Size, Source } from './types.js';

/** What is allocated beforehand: nothing; tables; the file's length, too; or zeros written everywhere. */
export type Preallocation = 'off' | 'metadata' | 'falloc' | 'full';

/** What every new image can be told. The defaults are qemu-img's. */
export interface NewImageOptions extends Pick<OpenOptions, 'cacheBytes' | 'resolve' | 'signal'> {
  /** The name of a storage that has none of its own. */
  name?: string;
  /** Whether a storage that is not empty is written over; `refused` otherwise. Default: `false`. */
  overwrite?: boolean;
  /** `0.10` for what very old programs read (version 2), `1.1` for version 3. Default: `1.1`. */
  version?: '0.10' | '1.1';
  /** Bytes: a power of two from 512 to 2 MiB. Default: 65536. */
  clusterSize?: number;
  /** The width of refcounts: a power of two from 1 to 64. Default: 16. */
  refcountBits?: number;
  /** Whether clusters are divided into 32 subclusters, so that small writes to an overlay copy less. */
  extendedL2?: boolean;
  /** Whether refcounts may be written late. */
  lazyRefcounts?: boolean;
  /** How compressed clusters will be compressed. Default: `zlib`. */
  compressionType?: 'zlib' | 'zstd';
  preallocation?: Preallocation;
}

export interface CreateOptions extends NewImageOptions {
  /** The disk's size in bytes, rounded up to whole sectors of 512. */
  size: Size;
  /** A storage for the guest's data; the image itself holds the tables only then. */
  dataFile?: Source;
  /** Whether that is to be a raw image by itself. */
  dataFileRaw?: boolean;
}

export interface OverlayOptions extends NewImageOptions {
  /** The disk's size in bytes. Default: the backing file's. */
  size?: Size;
  /** What the overlay calls its backing file; asked for by this name when it is opened. Default: the source's name. */
  backingName?: string;
  /** The backing file's format, where its first bytes are not to be trusted (they may be a guest's). */
  backingFormat?: 'qcow2' | 'raw';
}

export interface ResizeOptions {
  /** Whether the end of the disk may be cut off, with what is there. Default: `false`. */
  shrink?: boolean;
  /** For what is added. Default: `off`. */
  preallocation?: Preallocation;
}

/** How the disk of one moment is kept while it is written to. */
export interface ViewOptions {
  /** The name of the snapshot that keeps it. */
  name?: string;
  /**
   * Keeps it by copying instead: what is about to change is written into this storage first, so that the image itself
   * gets no snapshot. For images that can have none (raw ones, or with a data file), and for short views.
   */
  copies?: Storage;
  /** Whether `copies` is written over where it is not empty; `refused` otherwise. Default: `false`. */
  overwrite?: boolean;
  /**
   * What gives way where a copy cannot be made: the write that needs it fails, or the view breaks for ever (`stopped`)
   * and writing goes on. Default: `break-write`.
   */
  onError?: 'break-write' | 'break-view';
  /** After how many milliseconds without end a copy has failed. Default: never. */
  timeout?: number;
  signal?: AbortSignal;
}

/** What a snapshot says besides its name. */
export interface SnapshotOptions {
  /** When it is taken. Default: now. */
  date?: Date;
  /** How long the guest has been running, in nanoseconds. Default: 0. */
  vmClockNsec?: Size;
}

/** What a repair came to: the counts are of what is left, as a check that follows finds it. */
export interface RepairReport extends CheckReport {
  leaksFixed?: number;
  corruptionsFixed?: number;
}

/** How a clone is filled; the guest's own reads and writes always go first. */
export interface HydrateOptions extends LongOptions {
  /** How much is fetched at once, in bytes, rounded up to whole clusters. Default: 4 MiB. */
  batchBytes?: number;
  /** How many fetches are under way at once. Default: 6, which leaves the guest two of an HTTP source's requests. */
  parallel?: number;
  /** How many bytes a second are fetched, at most. Default: no limit. */
  limitRate?: number;
  /** For how many milliseconds the guest must have asked for nothing before a fetch begins. Default: 20. */
  quiet?: number;
  /** How long a fetch waits for that at most, in milliseconds. Default: 1000. */
  patience?: number;
  /** After how many bytes everything is made durable. Default: 64 MiB. */
  commitBytes?: number;
  /** After how many milliseconds everything is made durable. Default: 1000. */
  commitEvery?: number;
  /** How often a fetch that failed is tried again, besides what the source itself does. Default: 5. */
  retries?: number;
  /** The wait before the first retry, in milliseconds; each later one twice as long, up to a minute. Default: 500. */
  retryDelay?: number;
  /** Whether the backing file is kept when everything is there. Default: `false`. */
  keepBacking?: boolean;
}

/** How a hydration ended. */
export interface HydrationEnd {
  /** The id of a snapshot that still needs the backing file, which is kept for it. */
  neededBySnapshot?: string;
}

/** How far a clone is, in the terms of Linux's dm-clone. */
export interface HydrationStatus {
  /** The bytes that are there or not there together. */
  regionBytes: number;
  /** Regions that are there. */
  hydrated: number;
  /** Regions that the source can answer for. */
  total: number;
  /** Regions that are being fetched in the background. */
  hydrating: number;
  /** Bytes fetched in the background. */
  fetchedBytes: number;
  /** Fetches that had to be tried again. */
  retries: number;
  state: 'idle' | 'running' | 'paused' | 'complete' | 'failed';
}

/** The last ones are for `qcow2`. */
export interface ConvertOptions extends LongOptions, Omit<NewImageOptions, 'cacheBytes' | 'resolve'> {
  /** Default: `raw`. */
  format?: 'raw' | 'qcow2';
  /** Whether every cluster of a qcow2 image is compressed that gets smaller by it. Default: `false`. */
  compress?: boolean;
}

/** A disk as a file that is made while it is read. The options besides the format are for `qcow2`. */
export interface ExportOptions
  extends LongOptions,
    Pick<NewImageOptions, 'version' | 'clusterSize' | 'refcountBits' | 'extendedL2' | 'lazyRefcounts' | 'compressionType'> {
  /** Default: `qcow2`; `raw` is what `stream()` gives. */
  format?: 'raw' | 'qcow2';
  /** Bytes in each chunk. Default: 1 MiB. */
  chunkSize?: number;
}
