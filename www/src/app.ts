// <ox-app>: the page. Shows what the session has open, and hands it what the user chooses or drops.

import type { OxcowError } from 'oxcow';
import { css, html, LitElement, nothing, type TemplateResult } from 'lit';

import './elements/bitmaps.js';
import './elements/chain.js';
import './elements/check.js';
import './elements/clone.js';
import './elements/cluster-map.js';
import './elements/compare.js';
import './elements/download.js';
import './elements/facts.js';
import './elements/filling.js';
import './elements/hex-view.js';
import './elements/keep.js';
import './elements/resize.js';
import './elements/safety.js';
import './elements/snapshots.js';
import './elements/stored.js';
import type { Supply } from './elements/chain.js';
import type { HexView } from './elements/hex-view.js';
import { icons, mark } from './icons.js';
import { Session } from './session.js';
import { prepareEngine } from './spare.js';
import { store } from './store.js';
import { base } from './styles.js';
import { trouble } from './trouble.js';
import { counted, exact, formatName, formatWords, hex, size, stemOf } from './words.js';

export class App extends LitElement {
  static override properties = { _dropping: { state: true }, _offline: { state: true } };
  declare _dropping: boolean;
  declare _offline: boolean;

  readonly session = new Session();
  /** Nested elements are entered and left as the pointer moves; only leaving the outermost counts. */
  #entered = 0;

  static override styles = [
    base,
    css`
      :host {
        min-height: 100vh;
        display: flex;
        flex-direction: column;
      }
      .width {
        width: 100%;
        max-width: 76rem;
        margin: 0 auto;
        padding-inline: 1.25rem;
      }
      header.top {
        border-bottom: 1px solid var(--line);
        background: var(--surface);
      }
      header.top .width {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        justify-content: space-between;
        gap: 0.5rem 1.5rem;
        padding-block: 0.75rem;
      }
      .brand {
        display: flex;
        align-items: center;
        gap: 0.625rem;
        font-size: 1.25rem;
        font-weight: 700;
        letter-spacing: -0.02em;
      }
      .private {
        display: flex;
        align-items: center;
        gap: 0.4rem;
        color: var(--muted);
        font-size: 0.8125rem;
      }
      main {
        flex: 1;
        padding-block: 1.5rem 3rem;
      }
      footer {
        color: var(--muted);
        font-size: 0.8125rem;
        border-top: 1px solid var(--line);
      }
      footer .width {
        padding-block: 1rem;
        display: flex;
        flex-wrap: wrap;
        gap: 0.25rem 1.5rem;
      }

      .hero {
        max-width: 44rem;
        margin: 3.5rem auto 2.5rem;
        text-align: center;
      }
      .hero h1 {
        font-size: clamp(1.75rem, 1.2rem + 2.4vw, 2.5rem);
        line-height: 1.15;
        letter-spacing: -0.03em;
        font-weight: 700;
        text-wrap: balance;
      }
      .hero p {
        margin-top: 0.875rem;
        font-size: 1.0625rem;
        color: var(--muted);
        text-wrap: pretty;
      }
      .zone {
        position: relative;
        display: grid;
        justify-items: center;
        gap: 0.75rem;
        max-width: 60rem;
        margin: 0 auto;
        padding: 3rem 1.5rem;
        border: 2px dashed var(--control);
        border-radius: 14px;
        background: var(--surface);
        text-align: center;
        cursor: pointer;
      }
      .zone:hover,
      :host([dropping]) .zone {
        border-color: var(--accent);
        background: var(--accent-soft);
      }
      .zone svg {
        width: 40px;
        height: 40px;
        stroke-width: 1.1;
        color: var(--accent);
      }
      .zone strong {
        font-size: 1.0625rem;
      }
      .zone input,
      .another input {
        position: absolute;
        inset: 0;
        width: 100%;
        height: 100%;
        opacity: 0;
        cursor: pointer;
      }
      .zone:focus-within,
      .another:focus-within {
        outline: 2px solid var(--accent);
        outline-offset: 2px;
      }
      .shelf {
        display: grid;
        grid-template-columns: minmax(0, 1fr);
        gap: 1rem;
        max-width: 60rem;
        margin: 1.5rem auto 0;
      }
      .promises {
        display: grid;
        grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr));
        gap: 1.5rem 2rem;
        max-width: 60rem;
        margin: 2.75rem auto 0;
      }
      .promises h2 {
        font-size: 0.9375rem;
        margin-bottom: 0.25rem;
      }
      .promises p {
        color: var(--muted);
        font-size: 0.875rem;
      }

      .title {
        display: flex;
        flex-wrap: wrap;
        align-items: flex-start;
        justify-content: space-between;
        gap: 0.75rem 1.5rem;
        margin-bottom: 1.25rem;
      }
      .title h1 {
        font-size: 1.5rem;
        line-height: 1.25;
        letter-spacing: -0.02em;
        font-weight: 700;
        overflow-wrap: anywhere;
      }
      .title p {
        color: var(--muted);
        font-size: 0.875rem;
      }
      .another {
        position: relative;
        overflow: hidden;
      }
      .grid {
        display: grid;
        grid-template-columns: repeat(12, minmax(0, 1fr));
        gap: 1rem;
        align-items: start;
      }
      .grid > * {
        grid-column: span 12;
      }
      .column {
        display: grid;
        grid-template-columns: minmax(0, 1fr);
        gap: 1rem;
      }
      @media (min-width: 60rem) {
        .grid > .narrow {
          grid-column: span 5;
        }
        .grid > .wide {
          grid-column: span 7;
        }
      }
      .banner {
        margin-bottom: 1rem;
      }
      .banner .row {
        margin-top: 0.5rem;
      }
      .claims {
        display: grid;
        grid-template-columns: max-content minmax(0, 1fr);
        gap: 0.25rem 1.5rem;
        font-size: 0.875rem;
      }
      .claims dt {
        color: var(--muted);
      }
      .veil {
        position: fixed;
        inset: 0.75rem;
        z-index: 10;
        display: grid;
        place-items: center;
        border: 3px dashed var(--accent);
        border-radius: 16px;
        background: color-mix(in srgb, var(--accent-soft) 88%, transparent);
        color: var(--accent);
        font-size: 1.25rem;
        font-weight: 650;
        pointer-events: none;
      }
      @media (max-width: 30rem) {
        .width {
          padding-inline: 0.875rem;
        }
        .card {
          padding: 1rem 0.875rem;
        }
        .hero {
          margin-top: 1.25rem;
        }
        .zone {
          padding: 2rem 1rem;
        }
      }
    `,
  ];

  constructor() {
    super();
    this._dropping = false;
    this._offline = false;
    this.session.addEventListener('change', () => this.requestUpdate());
    this.session.fillings.addEventListener('change', () => this.requestUpdate());
    prepareEngine();
    // What a crash has left is removed, and what it interrupted goes on; a browser without a file system of its own has none.
    void store.sweep().then(() => this.session.fillAll()).catch(() => {});
    // The whole page takes files: a drop that misses would otherwise replace the page by the file.
    addEventListener('dragenter', (event) => this.#drag(event, 1));
    addEventListener('dragleave', (event) => this.#drag(event, -1));
    addEventListener('dragover', (event) => event.preventDefault());
    addEventListener('drop', (event) => this.#drop(event));
    this.addEventListener('activity', () => void this.session.touch());
    this.addEventListener('supply', (event) => {
      const { wanted, file } = (event as CustomEvent<Supply>).detail;
      void this.session.supply(wanted, file);
    });
    this.addEventListener('use-snapshot', (event) => void this.session.useSnapshot((event as CustomEvent<string | null>).detail ?? undefined));
    this.addEventListener('show-bytes', (event) => {
      void this.renderRoot.querySelector<HexView>('ox-hex')?.show((event as CustomEvent<bigint>).detail);
    });
    void navigator.serviceWorker?.ready.then(() => (this._offline = true));
  }

  override render(): TemplateResult {
    const { session } = this;
    return html`
      <header class="top">
        <div class="width">
          <div class="brand">${mark}<span>oxcow</span></div>
          <p class="private">${icons.lock}<span>Nothing leaves this tab${this._offline ? ', and it works without a network' : ''}</span></p>
        </div>
      </header>
      <main class="width">${session.phase === 'empty' ? this.#empty() : this.#opened()}</main>
      <footer>
        <div class="width">
          <span>oxcow works on qcow2 and raw disk images in a sandbox of your browser.</span>
          <span>Dropped files are never changed; what you change is kept in this browser, in copies.</span>
        </div>
      </footer>
      <p class="hide" role="status">${this.#announcement()}</p>
      ${this._dropping ? html`<div class="veil" aria-hidden="true">${session.missing.length ? 'Drop the missing file, or another image' : 'Drop the disk image'}</div>` : nothing}
    `;
  }

  #empty(): TemplateResult {
    return html`
      <div class="hero">
        <h1>Look inside a disk image</h1>
        <p>
          Virtual disks of QEMU, Proxmox, OpenStack and libvirt, of any size: what they contain, whether they are safe to use,
          and whether they are intact. Try changes on a copy, with snapshots; the file you drop is never changed.
        </p>
      </div>
      <label class="zone">
        ${icons.disk}
        <strong>Drop a disk image here</strong>
        <span class="button primary">Choose a file…</span>
        <span class="muted small">qcow2 or raw, together with its backing files if it has any</span>
        <input type="file" multiple aria-label="Choose a disk image" @change=${this.#choose} />
      </label>
      <div class="shelf">
        <section class="card" aria-labelledby="stored">
          <header><h2 id="stored">Kept in this browser</h2></header>
          <ox-stored .session=${this.session}></ox-stored>
        </section>
        <section class="card" aria-labelledby="clone">
          <header><h2 id="clone">Clone from a URL</h2></header>
          <ox-clone .session=${this.session}></ox-clone>
        </section>
      </div>
      <div class="promises">
        <section>
          <h2>It stays on your computer</h2>
          <p>The page may not send anything anywhere; the browser itself sees to that. It even works without a network.</p>
        </section>
        <section>
          <h2>Nothing is followed blindly</h2>
          <p>An image can name other files. You see what it asks for first, and you choose the files yourself.</p>
        </section>
        <section>
          <h2>Only what is needed is read</h2>
          <p>A terabyte opens as fast as a megabyte. Saving as raw streams to your disk and never fills memory.</p>
        </section>
      </div>
    `;
  }

  #opened(): TemplateResult {
    const { session } = this;
    const top = session.chain[0];
    const chain = session.phase === 'open' && session.dependencies.length > 0;
    const beside = chain || session.bitmaps.length > 0;
    const filling = session.stored && session.fillings.states.get(session.name);
    const keep = session.file && !session.stored && (session.phase === 'open' || (session.phase === 'failed' && session.report?.format === 'qcow2'));
    return html`
      <div class="title">
        <div>
          <h1>${session.name}</h1>
          <p class="number">
            ${session.report ? html`${formatName(session.report.format)}, ${size(session.fileSize)}${session.stored ? ', kept in this browser' : ''}. ` : nothing}${session.image
              ? html`Read so far: ${size(session.traffic.bytes)} (<span id="traffic">${exact(session.traffic.bytes)}</span>).`
              : nothing}
          </p>
        </div>
        <div class="row">
          <button @click=${() => session.close()}>Close</button>
          <label class="button another">Open another image<input type="file" multiple aria-label="Open another image" @change=${this.#choose} /></label>
        </div>
      </div>
      ${session.error ? this.#problem(session.error) : nothing} ${session.incomplete ? this.#incomplete() : nothing}
      ${session.marked
        ? html`<div class="note warning banner">
            ${icons.warning}
            <div><strong>This image is marked as corrupt.</strong> It can be read, but not changed before it is repaired: check it below.</div>
          </div>`
        : nothing}
      ${filling ? html`<div class="card banner"><ox-filling .filling=${filling} @fill-again=${() => session.fillThis()}></ox-filling></div>` : nothing}
      ${session.phase === 'opening' ? html`<p class="muted">Opening…</p>` : nothing}
      <div class="grid">
        ${top
          ? html`<section class="card" aria-labelledby="facts">
              <header><h2 id="facts">At a glance</h2></header>
              <ox-facts .info=${top} .fileSize=${session.fileSize}></ox-facts>
            </section>`
          : nothing}
        ${keep
          ? html`<section class="card" aria-labelledby="keep">
              <header><h2 id="keep">Work on it</h2></header>
              <ox-keep .session=${session} .view=${session.view}></ox-keep>
            </section>`
          : nothing}
        <section class=${`card ${beside ? 'wide' : ''}`} aria-labelledby="safety">
          <header><h2 id="safety">Safety report</h2><span class="small muted">made before anything is followed</span></header>
          <ox-safety .report=${session.report} .message=${session.reportError?.message} .supplied=${chain && session.missing.length === 0}></ox-safety>
        </section>
        ${beside
          ? html`<div class="narrow column">
              ${chain
                ? html`<section class="card" aria-labelledby="chain">
                    <header><h2 id="chain">Files it consists of</h2></header>
                    <ox-chain .name=${session.name} .chain=${session.chain} .dependencies=${session.dependencies}></ox-chain>
                  </section>`
                : nothing}
              ${session.bitmaps.length
                ? html`<section class="card" aria-labelledby="bitmaps">
                    <header><h2 id="bitmaps">Bitmaps</h2></header>
                    <ox-bitmaps .bitmaps=${session.bitmaps}></ox-bitmaps>
                  </section>`
                : nothing}
            </div>`
          : nothing}
        ${session.phase === 'failed' && session.report?.facts.length
          ? html`<section class="card" aria-labelledby="claims">
              <header><h2 id="claims">What the file says of itself</h2><span class="small muted">may be wrong</span></header>
              <dl class="claims number">
                ${session.report.facts.map(({ name, value }) => html`<dt>${name}</dt><dd class="name">${value}</dd>`)}
              </dl>
            </section>`
          : nothing}
        ${session.snapshots.length || session.writable
          ? html`<section class="card" aria-labelledby="snapshots">
              <header>
                <h2 id="snapshots">Snapshots</h2>
                <span class="small muted">${counted(session.snapshots.length, 'snapshot')}</span>
              </header>
              <ox-snapshots
                .session=${session}
                .snapshots=${session.snapshots}
                .used=${session.state}
                .activeSize=${top?.virtualSize ?? 0}
                .writable=${session.writable}
                .lineage=${session.stored?.about.lineage}
              ></ox-snapshots>
            </section>`
          : nothing}
        ${session.snapshots.length && session.readable && !top?.encrypted
          ? html`<section class="card" aria-labelledby="compare">
              <header><h2 id="compare">Compare two states</h2></header>
              <ox-compare .session=${session} .snapshots=${session.snapshots} .view=${session.view} .granularity=${top?.clusterSize ?? 65536}></ox-compare>
            </section>`
          : nothing}
        ${session.phase === 'open' ? this.#tools() : nothing}
      </div>
    `;
  }

  #tools(): TemplateResult {
    const { session } = this;
    const { image, view } = session;
    const top = session.chain[0];
    const state = session.snapshots.find(({ id }) => id === session.state);
    const what = state ? `as in the snapshot “${state.name || state.id}”` : session.snapshots.length ? 'in its active state' : 'as a machine sees it';
    return html`
      <section class="card" aria-labelledby="map">
        <header>
          <h2 id="map">Map of the disk</h2>
          <span class="small muted">${state ? `Snapshot “${state.name || state.id}”` : session.snapshots.length ? 'Active state' : 'What is stored, and how'}</span>
        </header>
        <ox-map .image=${image} .view=${view} .granularity=${top?.clusterSize ?? 65536}></ox-map>
      </section>
      ${session.readable
        ? html`<section class="card wide" aria-labelledby="bytes">
            <header>
              <h2 id="bytes">Bytes</h2>
              <span class="small muted">${state ? `Snapshot “${state.name || state.id}”` : 'Read-only'}</span>
            </header>
            <ox-hex .image=${image} .view=${view}></ox-hex>
          </section>`
        : nothing}
      <div class=${session.readable ? 'narrow column' : 'column'}>
        <section class="card" aria-labelledby="check">
          <header><h2 id="check">Check</h2></header>
          <ox-check .session=${session} .image=${session.base} .format=${top?.format ?? 'raw'}></ox-check>
        </section>
        ${session.writable
          ? html`<section class="card" aria-labelledby="resize">
              <header><h2 id="resize">Resize</h2></header>
              <ox-resize .session=${session} .view=${view}></ox-resize>
            </section>`
          : nothing}
        ${session.readable
          ? html`<section class="card" aria-labelledby="download">
              <header><h2 id="download">Save the disk</h2></header>
              ${top?.encrypted
                ? html`<p class="note">${icons.lock}<span>The content is encrypted, and oxcow cannot decrypt it yet: there is nothing to save.</span></p>`
                : html`<ox-download .image=${image} .view=${view} .stem=${this.#stem(state?.name)} .what=${what}></ox-download>`}
            </section>`
          : nothing}
      </div>
    `;
  }

  /** What keeps the image from being open, or a snapshot from being read, in words. */
  #problem(error: OxcowError): TemplateResult {
    const { session } = this;
    const format = session.report?.format ?? '';
    const foreign = error.code === 'unsupported' && format !== '' && format !== 'qcow2' && format !== 'raw';
    const titles: Record<string, string> = {
      corrupt: 'This image is damaged',
      unsupported: foreign ? `${formatName(format)} is not supported yet` : 'This image needs something that oxcow cannot do yet',
      'not-this-format': 'This is not the format it claims to be',
      dependency: 'A file that the image needs could not be opened',
      io: 'The file could not be read',
      busy: 'This image is open elsewhere',
      'no-space': 'There is no room left',
      stopped: 'This image was stopped',
    };
    const { place } = error;
    return html`<div class="note danger banner" role="alert">
      ${icons.danger}
      <div>
        <strong>${titles[error.code] ?? 'This image could not be opened'}.</strong>
        ${foreign
          ? html`The file is ${formatWords(format)}; oxcow reads qcow2 and raw images so far. QEMU’s <code>qemu-img convert</code> can turn it into one.`
          : html`${trouble(error)}${place?.offset === undefined || place.offset >= session.fileSize ? nothing : ` Byte ${hex(place.offset)} of the file.`}`}
        ${error.code === 'io' && session.file ? ' If it was changed, moved or deleted since you chose it, choose it again.' : nothing}
        ${session.stored && session.phase === 'failed'
          ? html`<div class="row"><button @click=${() => session.stored && session.openStored(session.stored)}>Try again</button></div>`
          : nothing}
        ${session.file && session.phase === 'failed' && error.code !== 'io' && error.code !== 'internal'
          ? html`<div class="row"><button @click=${() => session.openAsRaw()}>Show the file’s own bytes instead</button></div>`
          : nothing}
      </div>
    </div>`;
  }

  #incomplete(): TemplateResult {
    const { session } = this;
    const names = session.missing.map(({ wanted }) => wanted.name);
    const away = session.missing.find(({ url }) => url);
    if (away) {
      return html`<div class="note warning banner" role="alert">
        ${icons.warning}
        <div>
          <strong>What this is cloned from cannot be used now.</strong> ${trouble(away.error as OxcowError)} The parts that are here already
          are safe; the disk can be used again when the rest can be asked for.
          <div class="row"><button @click=${() => session.stored && session.openStored(session.stored)}>Try again</button></div>
        </div>
      </div>`;
    }
    return html`<div class="note warning banner" role="alert">
      ${icons.warning}
      <div>
        <strong>${
          session.missing.some(({ error }) => error) ? 'A file does not fit' : names.length === 1 ? 'A file is missing' : 'Files are missing'
        }:</strong> ${names.map(
          (name, index) => html`${index ? ', ' : ''}<code class="name">${name}</code>`,
        )}.
        ${session.dataMissing
          ? 'It holds the content of the disk, so the bytes cannot be shown without it.'
          : session.acceptsIncomplete
            ? 'What it holds reads as zeros here: the bytes and a saved disk are not complete.'
            : 'Drop it on this page or choose it below. The map and the check show what this image has by itself.'}
        ${session.dataMissing || session.acceptsIncomplete
          ? nothing
          : html`<div class="row"><button @click=${() => session.acceptIncomplete()}>Go on without it</button></div>`}
      </div>
    </div>`;
  }

  override updated(): void {
    const { name } = this.session;
    document.title = name ? `${name} · oxcow` : 'oxcow: look inside a disk image';
  }

  #announcement(): string {
    const { session } = this;
    const { name } = session;
    switch (session.phase) {
      case 'opening':
        return `Opening ${name}`;
      case 'open':
        return `${name} is open: ${formatName(session.chain[0]?.format ?? '')}, ${size(session.chain[0]?.virtualSize ?? 0)}`;
      case 'failed':
        return `${name} could not be opened`;
      default:
        return '';
    }
  }

  #stem(snapshot: string | undefined): string {
    return `${stemOf(this.session.name)}${snapshot ? `-${snapshot.replace(/[^\w.-]+/g, '_')}` : ''}`;
  }

  #choose(event: Event): void {
    const input = event.target as HTMLInputElement;
    const files = [...(input.files ?? [])];
    input.value = ''; // So that the same file can be chosen again.
    void this.session.open(files);
  }

  #drag(event: DragEvent, step: number): void {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    this.#entered = Math.max(this.#entered + step, 0);
    this._dropping = this.#entered > 0;
  }

  async #drop(event: DragEvent): Promise<void> {
    event.preventDefault();
    this.#entered = 0;
    this._dropping = false;
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length === 0) return;
    const { session } = this;
    if (session.missing.length && (await session.supplyByName(files))) return;
    await session.open(files);
  }
}

customElements.define('ox-app', App);
