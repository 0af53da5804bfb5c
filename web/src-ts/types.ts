import type { Place } from './errors.js';
import type { OpfsFile, Storage } from './storage/types.js';
import type {
  ConvertOptions,
  ExportOptions,
  CreateOptions,
  HydrateOptions,
  HydrationEnd,
  HydrationStatus,
  OverlayOptions,
  RepairReport,
  ResizeOptions,
  SnapshotOptions,
  ViewOptions,
} from './writing.js';

/** A size or an offset in bytes: a number, or a bigint past 2^53. */
export type Size = number | bigint;

/** Bytes of the caller's own, wherever they come from. */
export interface CustomSource {
  /** Shown in messages, and the base of relative names inside the image. */
  readonly name?: string;
  /** The length in bytes; it does not change while the source is open. */
  readonly size: number;
  /**
   * Gives `length` bytes from byte `offset` on: fewer only where the source ends. May answer at once or by
   * a promise; several reads may be under way at once. `signal` aborts when nobody waits for the bytes any more.
   */
  read(offset: number, length: number, options: { readonly signal: AbortSignal }): Uint8Array | Promise<Uint8Array>;
  /**
   * For sources that answer at once: fills `into` from byte `offset` on, and gives the number of bytes, fewer only where
   * the source ends. Used instead of `read`. `into` may be the engine's own memory, which is only there during the call.
   */
  readInto?(offset: number, into: Uint8Array): number;
  /**
   * `true` or options: every call is dear, so read large aligned windows and keep some (the default where answers
   * come by messages between threads); `false`: calls cost little.
   */
  readonly windowed?: boolean | WindowOptions;
}

/** How a source whose every call is dear is read, and how much of it is kept; all sizes in bytes. */
export interface WindowOptions {
  /** The least that is read at once; rounded up to a power of two. Default: 128 KiB. */
  windowBytes?: number;
  /** The most that one read asks for, when reads follow each other. Default: 4 MiB. */
  longestBytes?: number;
  /** How much may be kept. Default: 32 MiB. */
  cacheBytes?: number;
  /** How many reads are under way at once, at most. Default: 8. */
  parallel?: number;
}

/** How a file on an HTTP server is read. */
export interface HttpOptions {
  /** Sent with every request. */
  headers?: HeadersInit;
  /** Whether cookies go along, as for `fetch`. */
  credentials?: RequestCredentials;
  /** Used instead of the global `fetch`; always called in the thread that gives it. */
  fetch?: typeof fetch;
  /**
   * How much of the file may be kept, in bytes; a file that is not longer is taken as a whole from a server
   * without range requests. Default: 32 MiB.
   */
  cacheBytes?: number;
  /** The least that is asked for at once, in bytes; rounded up to a power of two. Default: 128 KiB. */
  windowBytes?: number;
  /** The most requests under way at once. Default: 8; browsers do six of them over HTTP/1.1 and let the others wait. */
  parallel?: number;
  /** How often a request that failed is tried again. Default: 5. */
  retries?: number;
  /** How long the first retry waits, in milliseconds; each later one twice as long, up to 10 s. Default: 200. */
  retryDelay?: number;
  /** After how many milliseconds without a byte a request has failed. Default: 20 000. */
  timeout?: number;
}

/** A file on an HTTP server: `http:` or `https:`, seen from this page where it is relative. */
export interface UrlSource extends HttpOptions {
  readonly url: string | URL;
  /** Shown in messages, and the base of relative names inside the image. Default: the URL up to its path. */
  readonly name?: string;
}

/** A file on an HTTP server that has been opened: its length and version are known. */
export interface HttpSource extends CustomSource {
  readonly name: string;
  /** What the server says of the version that was opened, where it does. */
  readonly etag: string | undefined;
  readonly lastModified: string | undefined;
  read(offset: number, length: number, options?: { readonly signal?: AbortSignal }): Promise<Uint8Array>;
}

/** What an image can be read from. */
export type Source =
  | Blob
  | Uint8Array
  | ArrayBuffer
  | URL
  | UrlSource
  | OpfsFile
  | FileSystemFileHandle
  | CustomSource;

/** A file that an image names, and that the caller may supply. */
export interface WantedFile {
  /** `backing`: holds what the image above has not stored; `data-file`: holds the guest's data. */
  role: 'backing' | 'data-file';
  /** The name as it stands in the image. It is untrusted: nothing has been opened. */
  name: string;
  /** The name of the image that asks. */
  base: string;
  /** The format that the image gives for it, if it does. */
  format: string | undefined;
  /** How deep in the chain the file stands: 1 for the image's own backing file, 2 for that one's…; 0 for its data file. */
  depth: number;
}

/** Supplies a file that an image names, or refuses it with `undefined`. */
export type Resolve = (wanted: WantedFile) => Source | undefined | Promise<Source | undefined>;

/** The formats that this version opens. */
export type Format = 'qcow2' | 'raw';

export interface OpenOptions {
  /** The image's format; looked for in its first bytes where not given. */
  format?: Format;
  /** The name of a source that has none of its own. */
  name?: string;
  /** `ignore`: do not open backing files; what they would supply reads as zeros. Default: `open`. */
  backing?: 'open' | 'ignore';
  /** `ignore`: do not open external data files; the content of an image that has one cannot be read then. */
  dataFile?: 'open' | 'ignore';
  /** Asked for every backing and data file that an image names. Without it, all are refused. */
  resolve?: Resolve;
  /** The most that may be kept of the image's tables, in bytes. Default: 32 MiB. */
  cacheBytes?: number;
  /**
   * Whether the image itself is opened for writing; files that it names never are. The source has to be a
   * {@link Storage}; anything else fails with the code `read-only`. Default: `false`.
   */
  writable?: boolean;
  /**
   * Whether the image is opened to be repaired, which can also be done with one that is marked as corrupt and could
   * not be opened for writing otherwise; implies `writable`. Default: `false`.
   */
  repair?: boolean;
  signal?: AbortSignal;
}

/** Follows and stops what may take long. */
export interface LongOptions {
  signal?: AbortSignal;
  /** Called now and then with how much is done, of how much: in units of the operation's own. */
  onProgress?: (done: number, total: number) => void;
}

/** A range of the disk as its guest sees it; all of it by default. */
export interface Range {
  /** The first byte. Default: 0. */
  start?: Size;
  /** How many bytes. Default: up to the end. */
  length?: Size;
}

/** An internal snapshot, as `qemu-img info --output=json` gives it. */
export interface Snapshot {
  id: string;
  name: string;
  /** The bytes of the virtual machine's state. */
  vmStateSize: Size;
  /** Seconds since 1970. */
  dateSec: number;
  dateNsec: number;
  vmClockSec: number;
  vmClockNsec: number;
  /** Instructions executed, where recorded. */
  icount?: Size;
  /** The size of the guest's disk then, in bytes, where the image says so. */
  diskSize?: Size;
}

/** A persistent dirty bitmap. */
export interface Bitmap {
  name: string;
  /** The bytes that one bit stands for. */
  granularity: Size;
  /** `in-use`: was not saved after its last change, not to be trusted; `auto`: writers keep it up to date. */
  flags: string[];
}

/** The fields of `qemu-img info --output=json`, in camelCase. */
export interface ImageInfo {
  filename: string;
  format: string;
  /** The size of the guest's disk in bytes. */
  virtualSize: Size;
  /** The bytes that the file takes; its length where a source cannot tell. */
  actualSize?: Size;
  clusterSize?: number;
  encrypted?: boolean;
  dirtyFlag?: boolean;
  backingFilename?: string;
  fullBackingFilename?: string;
  backingFilenameFormat?: string;
  snapshots?: Snapshot[];
  formatSpecific?: { type: string; data: Qcow2Specific };
}

export interface Qcow2Specific {
  /** `0.10` for version 2, `1.1` for version 3. */
  compat: string;
  compressionType?: string;
  lazyRefcounts?: boolean;
  refcountBits: number;
  corrupt?: boolean;
  extendedL2?: boolean;
  dataFile?: string;
  dataFileRaw?: boolean;
  encrypt?: { format: string; [more: string]: unknown };
  bitmaps?: Bitmap[];
}

/** A run of bytes of the guest's disk that is all of one kind, as `qemu-img map --output=json` gives it. */
export interface Extent {
  start: Size;
  length: Size;
  /** 0 in the image itself, 1 in its backing file… */
  depth: number;
  /** Whether any layer of the chain says something about it. */
  present: boolean;
  /** Whether it reads as zeros. */
  zero: boolean;
  /** Whether bytes of it are stored. */
  data: boolean;
  compressed: boolean;
  /** Where in the layer's file it is stored, for uncompressed data. */
  offset?: Size;
}

export interface MapOptions extends Range, LongOptions {
  /** The most extents to give at once. Default: 1000. */
  limit?: number;
}

export interface MapPage {
  extents: Extent[];
  /** Where the next page starts; absent at the end of the range. */
  next?: Size;
}

export interface OverviewOptions extends Range, LongOptions {
  /** Into how many equal parts the range is divided. */
  cells: number;
}

/** The kinds of content that {@link Overview} counts, in the order of its shares. */
export const OVERVIEW_KINDS = ['unallocated', 'zero', 'data', 'compressed', 'backing', 'damaged'] as const;

/** How much of each part of a disk is of which kind: what a picture of it needs. */
export interface Overview {
  start: Size;
  length: Size;
  cells: number;
  /**
   * For each cell, for each of {@link OVERVIEW_KINDS}: its share of the cell, 0 to 255; never 0 for a kind
   * of which there is anything.
   */
  shares: Uint8Array;
  /** How many bytes of the range are of each of {@link OVERVIEW_KINDS}. */
  totals: Size[];
}

/** The fields of `qemu-img check --output=json`, in camelCase; counts are absent where they are zero. */
export interface CheckReport {
  filename: string;
  format: string;
  /** Errors that kept the check itself from reading something. */
  checkErrors: number;
  corruptions?: number;
  leaks?: number;
  imageEndOffset?: Size;
  totalClusters?: number;
  allocatedClusters?: number;
  fragmentedClusters?: number;
  compressedClusters?: number;
  /** What was found, a sentence each; the first thousand. */
  messages: string[];
}

/**
 * How much a finding matters. `note`: ordinary images have such; `warning`: somebody has to decide or to look
 * before the image is used; `danger`: no ordinary program makes this, and using the image may reach other
 * files, mislead programs or exhaust the machine.
 */
export type Severity = 'note' | 'warning' | 'danger';

/** Something that the safety report tells. */
export interface Finding {
  /** What it is, in kebab case; it keeps its meaning from version to version. */
  code: string;
  severity: Severity;
  /** A sentence for a person. */
  message: string;
  /** Where in the file. */
  place?: Place;
  /** The number that stands there, or the feature's bit. */
  number?: Size;
  /** At how many places of the same structure this was found. */
  count: Size;
}

/** A property of the image that the safety report tells. */
export interface Fact {
  code: string;
  name: string;
  value: string;
  /** The value where it is a number: bytes for sizes. */
  number?: Size;
}

/** What is known of a file before anything it names is followed. */
export interface SafetyReport {
  /** `safe`: nothing above a note; `caution`: a warning; `unsafe`: a danger. */
  verdict: 'safe' | 'caution' | 'unsafe';
  /** What the file is taken for, by QEMU's name. */
  format: string;
  /** Everything that the file has the signature of, `format` first. */
  formats: string[];
  /** Whether the engine can open it, the files it wants aside. */
  opens: boolean;
  fileSize: Size;
  /** The disk's size as the image claims it. */
  virtualSize?: Size;
  /** The other files that the image asks for; none of them was opened. Names are untrusted. */
  wants: { role: 'backing' | 'data-file'; name: string; format?: string; reach: string }[];
  facts: Fact[];
  /** What was found, the worst first. */
  findings: Finding[];
}

/** What was read from the sources of an image so far, and written to its storage. */
export interface Traffic {
  /** Bytes read. */
  bytes: number;
  reads: number;
  /** Bytes written. */
  written: number;
  writes: number;
}

export interface StreamOptions extends Range, LongOptions {
  /** Bytes in each chunk. Default: 1 MiB. */
  chunkSize?: number;
}

/** An open disk image with its backing chain, read as its guest would read it. */
export interface DiskImage extends AsyncDisposable {
  /** The size of the guest's disk in bytes: of the active state, or of the snapshot in use. */
  readonly virtualSize: Size;
  /** The id of the snapshot in use; `undefined` for the active state. */
  readonly snapshot: string | undefined;
  /** The image and its backing files, from the top down. */
  info(): Promise<ImageInfo[]>;
  snapshots(): Promise<Snapshot[]>;
  bitmaps(): Promise<Bitmap[]>;
  /** A page of the map: what each part of the disk is, and where it is stored. */
  map(options?: MapOptions): Promise<MapPage>;
  /** All pages of the map, one extent after the other. */
  extents(options?: MapOptions): AsyncIterable<Extent>;
  overview(options: OverviewOptions): Promise<Overview>;
  /** Checks the image's own consistency, changing nothing. */
  check(options?: LongOptions): Promise<CheckReport>;
  /** Reads bytes of the guest's disk; the range must lie inside it. */
  read(offset: Size, length: number, options?: { signal?: AbortSignal }): Promise<Uint8Array>;
  /** The same into bytes of the caller's, as many as those are. In the engine's own thread, from files, nothing is copied. */
  readInto(offset: Size, into: Uint8Array, options?: { signal?: AbortSignal }): Promise<void>;
  /** The guest's disk (or a range of it) as raw bytes, read as they are asked for. */
  stream(options?: StreamOptions): ReadableStream<Uint8Array>;
  /**
   * Reads this snapshot from now on, or the active state again. An image that is open for writing stays at its active
   * state (`refused`): see {@link openSnapshot}.
   */
  useSnapshot(idOrName: string | undefined): Promise<void>;

  /** Whether the image was opened for writing. Where it was not, everything below fails with the code `read-only`. */
  readonly writable: boolean;
  /**
   * Writes bytes of the guest's disk; the range must lie inside it. They are durable once a {@link flush} that was
   * called later has resolved. A write that `signal` stops leaves each sector of 512 bytes in its range old or new.
   * Fails with `no-space` where the storage is full: the image stays good, and can be used on.
   */
  write(offset: Size, bytes: Uint8Array, options?: { signal?: AbortSignal }): Promise<void>;
  /**
   * Writes whole clusters compressed, as far as that makes them smaller: `offset` and the end of `bytes` are multiples
   * of the cluster size, or the disk's end.
   */
  writeCompressed(offset: Size, bytes: Uint8Array, options?: { signal?: AbortSignal }): Promise<void>;
  /** Makes a range read as zeros. `unmap`: gives its whole clusters back, which are kept otherwise. */
  writeZeroes(offset: Size, length: Size, options?: { unmap?: boolean; signal?: AbortSignal }): Promise<void>;
  /** Gives back the whole clusters inside a range, which read as zeros then: what a guest's TRIM is. */
  discard(offset: Size, length: Size, options?: { signal?: AbortSignal }): Promise<void>;
  /**
   * Makes durable what was completed before. Where it fails the image is stopped: what was flushed before is safe, and
   * every later change fails with the code `stopped`.
   */
  flush(): Promise<void>;
  /** Gives the disk another size, in bytes, a multiple of 512; the image must have no snapshots for less. */
  resize(size: Size, options?: ResizeOptions): Promise<void>;
  /**
   * Repairs the image as `qemu-img check -r` does, but never in place: a crash leaves it as it was or repaired.
   * `leaks`: gives back clusters that nothing uses; `all`: everything that is certain.
   */
  repair(what: 'leaks' | 'all', options?: LongOptions): Promise<RepairReport>;

  /** Keeps the disk as it is now, in an internal snapshot. Names need not be unique; ids are. */
  createSnapshot(name: string, options?: SnapshotOptions): Promise<Snapshot>;
  /** Makes the disk what it was at a snapshot, its size included. What was written since is gone. */
  applySnapshot(idOrName: string): Promise<void>;
  /** Deletes a snapshot; `refused` while an image from {@link openSnapshot} or {@link view} reads it. */
  deleteSnapshot(idOrName: string): Promise<void>;
  /** A snapshot as a read-only image of its own, to be read while this one is written to. Close it before this one. */
  openSnapshot(idOrName: string): Promise<DiskImage>;
  /**
   * The disk as it is now, as a read-only image of its own, to be read, streamed or converted while this one is written
   * to. It is kept in an internal snapshot (of this name), which goes when the view is closed; or, with `copies`, by
   * copying what changes: the image is not touched then, {@link applySnapshot} and a smaller size are `refused` until the
   * view is closed, and its own map is that of a raw disk.
   */
  view(options?: string | ViewOptions): Promise<DiskImage>;

  /**
   * Fills an overlay from its backing file in the background of everything else, and drops the backing file when
   * nothing needs it any more. Progress is told in bytes. A hydration that is stopped by its signal, by closing the
   * image or by a crash goes on where it was when it is called again.
   */
  hydrate(options?: HydrateOptions): Promise<HydrationEnd>;
  /** How far that is, also while nobody hydrates. */
  hydration(): Promise<HydrationStatus>;
  /** Has the hydration under way start no further fetch. */
  pauseHydration(): Promise<void>;
  resumeHydration(): Promise<void>;
  /** Whether clusters that are read from the backing file are kept in the image. A hydration does so anyway. */
  setCopyOnRead(on: boolean): Promise<void>;

  /** Writes the disk as it is into another storage, in place of what is there. */
  convert(target: Storage, options?: ConvertOptions): Promise<void>;

  /**
   * The disk as a file, from its first byte to its last, made while it is read: a download, the body of a request.
   * Nothing is stored anywhere, and what is kept meanwhile is where the disk has data. Its clusters are not compressed,
   * which only {@link convert} can do; and unlike that, this does not look for zeros in what the image calls data. Of an
   * image that is written to, export a {@link view}.
   */
  export(options?: ExportOptions): ReadableStream<Uint8Array>;

  traffic(): Promise<Traffic>;
  /**
   * Ends everything that is under way, makes everything durable and closes the storage. Fails where that cannot be
   * done (`stopped`, `no-space`, …); the image is closed all the same.
   */
  close(): Promise<void>;
}

/** An engine: opens images. */
export interface Engine extends AsyncDisposable {
  open(source: Source | Storage, options?: OpenOptions): Promise<DiskImage>;
  /** Writes a new qcow2 image into an empty storage, and opens it for writing. */
  create(storage: Storage, options: CreateOptions): Promise<DiskImage>;
  /**
   * Writes a new qcow2 image that holds only what differs from `backing`, and opens it for writing. `backing` is never
   * written to; it must be supplied again, and be the same, whenever the overlay is opened.
   */
  overlay(storage: Storage, backing: Source, options?: OverlayOptions): Promise<DiskImage>;
  /**
   * An overlay that keeps what is read from `source`. It can be used at once; {@link DiskImage.hydrate} fills it in the
   * background until it needs `source` no more.
   */
  clone(storage: Storage, source: Source, options?: OverlayOptions): Promise<DiskImage>;
  /** Reports what is known of a file, without following anything it names. Works on damaged images. */
  inspect(source: Source, options?: { name?: string; signal?: AbortSignal }): Promise<SafetyReport>;
  /** Closes every image and frees the engine. */
  close(): Promise<void>;
}
