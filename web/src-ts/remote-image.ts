// An image in the worker, as the main thread sees it.

import type { Channel } from './channel.js';
import type { Storage } from './storage/types.js';
import { exportOf, extentsOf, streamOf, type Exported } from './stream.js';
import type {
  Bitmap,
  CheckReport,
  DiskImage,
  ImageInfo,
  LongOptions,
  MapOptions,
  MapPage,
  Overview,
  OverviewOptions,
  Size,
  Snapshot,
  Source,
  StreamOptions,
  Traffic,
} from './types.js';
import type { Answer, SentSource, State } from './worker.js';
import type {
  ConvertOptions,
  ExportOptions,
  HydrateOptions,
  HydrationEnd,
  HydrationStatus,
  RepairReport,
  ResizeOptions,
  SnapshotOptions,
  ViewOptions,
} from './writing.js';

/** The way to the worker. */
export interface Link {
  channel: Channel;
  /** The form in which a source or a storage crosses. */
  send(source: Source | Storage, signal?: AbortSignal): Promise<SentSource>;
}

export class RemoteImage implements DiskImage {
  #link: Link;
  #id: number;
  #state: State;

  constructor(link: Link, { image, state }: Answer) {
    this.#link = link;
    this.#id = image;
    this.#state = state;
  }

  get virtualSize(): Size {
    return this.#state.virtualSize;
  }

  get snapshot(): string | undefined {
    return this.#state.snapshot;
  }

  get writable(): boolean {
    return this.#state.writable;
  }

  #call(method: string, options: LongOptions & object = {}, args: object = {}, transfer: Transferable[] = []) {
    const { signal, onProgress, ...sent } = options;
    return this.#link.channel.call(method, { ...sent, ...args, image: this.#id }, { signal, onProgress, transfer });
  }

  /** A call that may change what is known here. */
  async #change(method: string, options: LongOptions & object = {}, args: object = {}): Promise<void> {
    this.#state = (await this.#call(method, options, args)) as State;
  }

  /** A call that moves a copy of `bytes`: the caller's own stay with him. */
  async #send(method: string, offset: Size, bytes: Uint8Array, options?: { signal?: AbortSignal }): Promise<void> {
    const copy = bytes.slice();
    await this.#call(method, options, { offset, bytes: copy }, [copy.buffer]);
  }

  info(): Promise<ImageInfo[]> {
    return this.#call('info') as Promise<ImageInfo[]>;
  }

  snapshots(): Promise<Snapshot[]> {
    return this.#call('snapshots') as Promise<Snapshot[]>;
  }

  bitmaps(): Promise<Bitmap[]> {
    return this.#call('bitmaps') as Promise<Bitmap[]>;
  }

  map(options?: MapOptions): Promise<MapPage> {
    return this.#call('map', options) as Promise<MapPage>;
  }

  extents(options?: MapOptions) {
    return extentsOf(this, options);
  }

  overview(options: OverviewOptions): Promise<Overview> {
    return this.#call('overview', options) as Promise<Overview>;
  }

  check(options?: LongOptions): Promise<CheckReport> {
    return this.#call('check', options) as Promise<CheckReport>;
  }

  read(offset: Size, length: number, options?: { signal?: AbortSignal }): Promise<Uint8Array> {
    return this.#call('read', options, { offset, length }) as Promise<Uint8Array>;
  }

  async readInto(offset: Size, into: Uint8Array, options?: { signal?: AbortSignal }): Promise<void> {
    into.set(await this.read(offset, into.length, options));
  }

  stream(options?: StreamOptions): ReadableStream<Uint8Array> {
    return streamOf(this, options);
  }

  useSnapshot(idOrName: string | undefined): Promise<void> {
    return this.#change('useSnapshot', {}, { snapshot: idOrName });
  }

  write(offset: Size, bytes: Uint8Array, options?: { signal?: AbortSignal }): Promise<void> {
    return this.#send('write', offset, bytes, options);
  }

  writeCompressed(offset: Size, bytes: Uint8Array, options?: { signal?: AbortSignal }): Promise<void> {
    return this.#send('writeCompressed', offset, bytes, options);
  }

  async writeZeroes(offset: Size, length: Size, options?: { unmap?: boolean; signal?: AbortSignal }): Promise<void> {
    await this.#call('writeZeroes', options, { offset, length });
  }

  async discard(offset: Size, length: Size, options?: { signal?: AbortSignal }): Promise<void> {
    await this.#call('discard', options, { offset, length });
  }

  async flush(): Promise<void> {
    await this.#call('flush');
  }

  resize(size: Size, options?: ResizeOptions): Promise<void> {
    return this.#change('resize', options, { size });
  }

  repair(what: 'leaks' | 'all', options?: LongOptions): Promise<RepairReport> {
    return this.#call('repair', options, { what }) as Promise<RepairReport>;
  }

  createSnapshot(name: string, options?: SnapshotOptions): Promise<Snapshot> {
    return this.#call('createSnapshot', options, { name }) as Promise<Snapshot>;
  }

  applySnapshot(idOrName: string): Promise<void> {
    return this.#change('applySnapshot', {}, { snapshot: idOrName });
  }

  async deleteSnapshot(idOrName: string): Promise<void> {
    await this.#call('deleteSnapshot', {}, { snapshot: idOrName });
  }

  async openSnapshot(idOrName: string): Promise<DiskImage> {
    return new RemoteImage(this.#link, (await this.#call('openSnapshot', {}, { snapshot: idOrName })) as Answer);
  }

  async view(options: string | ViewOptions = {}): Promise<DiskImage> {
    const { copies, ...others } = typeof options === 'string' ? { name: options } : options;
    const sent = copies && { copies: await this.#link.send(copies, others.signal) };
    return new RemoteImage(this.#link, (await this.#call('view', others, sent)) as Answer);
  }

  hydrate(options?: HydrateOptions): Promise<HydrationEnd> {
    return this.#call('hydrate', options) as Promise<HydrationEnd>;
  }

  hydration(): Promise<HydrationStatus> {
    return this.#call('hydration') as Promise<HydrationStatus>;
  }

  async pauseHydration(): Promise<void> {
    await this.#call('pauseHydration');
  }

  async resumeHydration(): Promise<void> {
    await this.#call('resumeHydration');
  }

  async setCopyOnRead(on: boolean): Promise<void> {
    await this.#call('setCopyOnRead', {}, { on });
  }

  async convert(target: Storage, options: ConvertOptions = {}): Promise<void> {
    await this.#call('convert', options, { target: await this.#link.send(target, options.signal) });
  }

  export(options: ExportOptions = {}): ReadableStream<Uint8Array> {
    return exportOf(this, (given) => this.#openExport(given), options);
  }

  async #openExport(options: ExportOptions): Promise<Exported> {
    const { id, size } = (await this.#call('export', options)) as { id: number; size: Size };
    return {
      size,
      read: (offset, length, given) =>
        this.#call('readExport', given, { id, offset, length }) as Promise<Uint8Array>,
      // It ends with the image at the latest.
      close: () => void this.#call('closeExport', {}, { id }).catch(() => {}),
    };
  }

  traffic(): Promise<Traffic> {
    return this.#call('traffic') as Promise<Traffic>;
  }

  async close(): Promise<void> {
    await this.#call('close');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
