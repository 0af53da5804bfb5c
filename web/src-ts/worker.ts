// The dedicated worker: owns the engine and serves the calls of remote.ts.

import { Channel, moved, type Call, type Port } from './channel.js';
import { OxcowError } from './errors.js';
import type { LocalImage } from './local-image.js';
import { LocalEngine } from './local.js';
import { loadEngine, loadReader, type ModuleSource } from './modules.js';
import type { CustomStorage, OpfsFile, Storage } from './storage/types.js';
import type { Exported } from './stream.js';
import type {
  CustomSource,
  MapOptions,
  OpenOptions,
  OverviewOptions,
  Size,
  Source,
  WantedFile,
  WindowOptions,
} from './types.js';
import type {
  ConvertOptions,
  CreateOptions,
  ExportOptions,
  HydrateOptions,
  OverlayOptions,
  ResizeOptions,
  SnapshotOptions,
  ViewOptions,
} from './writing.js';

/** An object of the other side, which is used by its number. */
interface RemoteSource {
  remote: number;
  name?: string;
  size: number;
  windowed: true | WindowOptions;
  /** What it can besides being read, if it can be written to. */
  storage?: { truncates: boolean };
}

/** A source or a storage as it crosses to the worker: as it is, or as the number under which the other side has it. */
export type SentSource = Exclude<Source, CustomSource> | OpfsFile | FileSystemFileHandle | RemoteSource;

/** What is known of an image without asking, told whenever it may have changed. */
export interface State {
  virtualSize: Size;
  snapshot: string | undefined;
  writable: boolean;
}

/** An image that was opened. */
export interface Answer {
  image: number;
  state: State;
}

const engine = new LocalEngine();
const images = new Map<number, LocalImage>();
/** Files that are being made, by number. */
const exports = new Map<number, Exported>();
let nextId = 1;

function imageOf(id: number): LocalImage {
  const image = images.get(id);
  if (!image) throw new OxcowError('closed', 'The image is closed');
  return image;
}

const stateOf = ({ virtualSize, snapshot, writable }: LocalImage): State => ({ virtualSize, snapshot, writable });

function opened(image: LocalImage): Answer {
  const id = nextId++;
  images.set(id, image);
  return { image: id, state: stateOf(image) };
}

function received(source: SentSource): Source {
  return 'remote' in source ? (source.storage ? remoteStorage(source) : remoteSource(source)) : source;
}

function remoteSource({ remote, size, name, windowed }: RemoteSource): CustomSource {
  return {
    ...(name !== undefined && { name }),
    size,
    windowed,
    read: (offset, length, { signal }) =>
      channel.call('read', { remote, offset, length }, { signal }) as Promise<Uint8Array>,
  };
}

function remoteStorage(source: RemoteSource): CustomStorage {
  const { remote } = source;
  let { size } = source;
  const known = async () => {
    size = (await channel.call('size', { remote })) as number;
  };
  /** A failure may have left it longer, which only the other side knows. */
  const attempt = async (method: string, args: object, transfer: Transferable[] = []) => {
    try {
      await channel.call(method, { remote, ...args }, { transfer });
    } catch (error) {
      await known();
      throw error;
    }
  };
  return {
    ...remoteSource(source),
    get size() {
      return size;
    },
    write: (offset, bytes) => attempt('write', { offset, bytes }, [bytes.buffer as ArrayBuffer]),
    flush: () => attempt('flush', {}),
    ...(source.storage?.truncates && { truncate: (length: number) => attempt('truncate', { size: length }) }),
    close: async () => {
      await channel.call('release', { remote, close: true });
    },
  };
}

type Sent<T> = T & { image: number };
type Opening<T> = { source: SentSource; options: T; resolve: number | undefined };

/** Options with what cannot cross put in again. */
function completed<T extends object>({ options, resolve }: Opening<T>, call: Call) {
  return {
    ...options,
    signal: call.signal,
    resolve: async (wanted: WantedFile) => {
      if (resolve === undefined) return undefined;
      const found = await channel.call('resolve', { resolve, wanted }, { signal: call.signal });
      return found === undefined ? undefined : received(found as SentSource);
    },
  };
}

const long = (call: Call) => ({ signal: call.signal, onProgress: call.progress });

const channel: Channel = new Channel(self as unknown as Port, {
  load: ({ module, reader }: { module: ModuleSource | undefined; reader: ModuleSource | undefined }) =>
    module && !reader
      ? loadEngine(module)
      : loadReader(
          reader ?? new URL('./wasm/oxcow_reader_bg.wasm', import.meta.url),
          () => module ?? new URL('./wasm/oxcow_web_bg.wasm', import.meta.url),
        ),

  open: async (args: Opening<OpenOptions>, call: Call) =>
    opened(await engine.open(received(args.source), completed(args, call))),

  create: async (args: Opening<Omit<CreateOptions, 'dataFile'>> & { dataFile?: SentSource }, call: Call) => {
    const dataFile = args.dataFile && { dataFile: received(args.dataFile) };
    return opened(await engine.create(received(args.source) as Storage, { ...completed(args, call), ...dataFile }));
  },

  overlay: async (args: Opening<OverlayOptions> & { backing: SentSource }, call: Call) =>
    opened(await engine.overlay(received(args.source) as Storage, received(args.backing), completed(args, call))),

  clone: async (args: Opening<OverlayOptions> & { backing: SentSource }, call: Call) =>
    opened(await engine.clone(received(args.source) as Storage, received(args.backing), completed(args, call))),

  inspect: (args: { source: SentSource; name?: string }, call: Call) =>
    engine.inspect(received(args.source), { signal: call.signal, ...(args.name !== undefined && { name: args.name }) }),

  info: (args: Sent<object>) => imageOf(args.image).info(),
  snapshots: (args: Sent<object>) => imageOf(args.image).snapshots(),
  bitmaps: (args: Sent<object>) => imageOf(args.image).bitmaps(),
  traffic: (args: Sent<object>) => imageOf(args.image).traffic(),

  map: (args: Sent<MapOptions>, call: Call) => imageOf(args.image).map({ ...args, ...long(call) }),
  overview: (args: Sent<OverviewOptions>, call: Call) => imageOf(args.image).overview({ ...args, ...long(call) }),
  check: (args: Sent<object>, call: Call) => imageOf(args.image).check(long(call)),

  read: async (args: Sent<{ offset: Size; length: number }>, call: Call) =>
    moved(await imageOf(args.image).read(args.offset, args.length, { signal: call.signal })),

  async useSnapshot(args: Sent<{ snapshot: string | undefined }>) {
    const image = imageOf(args.image);
    await image.useSnapshot(args.snapshot);
    return stateOf(image);
  },

  write: (args: Sent<{ offset: Size; bytes: Uint8Array }>, call: Call) =>
    imageOf(args.image).write(args.offset, args.bytes, { signal: call.signal }),
  writeCompressed: (args: Sent<{ offset: Size; bytes: Uint8Array }>, call: Call) =>
    imageOf(args.image).writeCompressed(args.offset, args.bytes, { signal: call.signal }),
  writeZeroes: (args: Sent<{ offset: Size; length: Size; unmap?: boolean }>, call: Call) =>
    imageOf(args.image).writeZeroes(args.offset, args.length, { ...args, signal: call.signal }),
  discard: (args: Sent<{ offset: Size; length: Size }>, call: Call) =>
    imageOf(args.image).discard(args.offset, args.length, { signal: call.signal }),
  flush: (args: Sent<object>) => imageOf(args.image).flush(),

  async resize(args: Sent<ResizeOptions & { size: Size }>) {
    const image = imageOf(args.image);
    await image.resize(args.size, args);
    return stateOf(image);
  },

  repair: (args: Sent<{ what: 'leaks' | 'all' }>, call: Call) => imageOf(args.image).repair(args.what, long(call)),

  createSnapshot: (args: Sent<SnapshotOptions & { name: string }>) => imageOf(args.image).createSnapshot(args.name, args),

  async applySnapshot(args: Sent<{ snapshot: string }>) {
    const image = imageOf(args.image);
    await image.applySnapshot(args.snapshot);
    return stateOf(image);
  },

  deleteSnapshot: (args: Sent<{ snapshot: string }>) => imageOf(args.image).deleteSnapshot(args.snapshot),
  openSnapshot: async (args: Sent<{ snapshot: string }>) =>
    opened(await imageOf(args.image).openSnapshot(args.snapshot)),
  async view(args: Sent<Omit<ViewOptions, 'copies'>> & { copies?: SentSource }, call: Call) {
    const copies = args.copies && { copies: received(args.copies) as Storage };
    return opened(await imageOf(args.image).view({ ...args, ...copies, signal: call.signal } as ViewOptions));
  },

  hydrate: (args: Sent<HydrateOptions>, call: Call) => imageOf(args.image).hydrate({ ...args, ...long(call) }),
  hydration: (args: Sent<object>) => imageOf(args.image).hydration(),
  pauseHydration: (args: Sent<object>) => imageOf(args.image).pauseHydration(),
  resumeHydration: (args: Sent<object>) => imageOf(args.image).resumeHydration(),
  setCopyOnRead: (args: Sent<{ on: boolean }>) => imageOf(args.image).setCopyOnRead(args.on),

  convert: (args: Sent<ConvertOptions & { target: SentSource }>, call: Call) =>
    imageOf(args.image).convert(received(args.target) as Storage, { ...args, ...long(call) }),

  async export(args: Sent<ExportOptions>, call: Call) {
    const image = imageOf(args.image);
    const id = nextId++;
    const { size, read, close } = await image.openExport({ ...args, signal: call.signal });
    exports.set(id, { size, read, close: () => (exports.delete(id), close()) });
    return { id, size };
  },
  async readExport(args: Sent<{ id: number; offset: Size; length: number }>, call: Call) {
    const exported = exports.get(args.id);
    if (!exported) throw new OxcowError('closed', 'The export is closed');
    return moved(await exported.read(args.offset, args.length, { signal: call.signal }));
  },
  closeExport: (args: Sent<{ id: number }>) => exports.get(args.id)?.close(),

  async close(args: Sent<object>) {
    const image = images.get(args.image);
    images.delete(args.image);
    await image?.close();
  },

  async closeAll() {
    images.clear();
    await engine.close();
  },
});
