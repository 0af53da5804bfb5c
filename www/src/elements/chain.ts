// <ox-chain>: the image and the files below it; what is missing is asked for by its name.

import type { ImageInfo, OxcowError, WantedFile } from 'oxcow';
import { css, html, LitElement, nothing, type TemplateResult } from 'lit';

import { icons } from '../icons.js';
import type { Dependency } from '../session.js';
import { base } from '../styles.js';
import { baseName, formatName, size } from '../words.js';

/** Asks for the event `supply`: a file of the user's for one that the image names. */
export interface Supply {
  wanted: WantedFile;
  file: File;
}

export class Chain extends LitElement {
  static override properties = { name: { attribute: false }, chain: { attribute: false }, dependencies: { attribute: false } };
  /** What the image itself is called. */
  declare name: string;
  declare chain: ImageInfo[];
  declare dependencies: Dependency[];

  static override styles = [
    base,
    css`
      ol > li {
        position: relative;
        display: grid;
        grid-template-columns: 16px 1fr;
        gap: 0.625rem;
        padding-bottom: 0.875rem;
        font-size: 0.875rem;
      }
      ol > li:last-child {
        padding-bottom: 0;
      }
      ol > li:not(:last-child)::before {
        content: '';
        position: absolute;
        left: 7.5px;
        top: 1.35rem;
        bottom: 0;
        border-inline-start: 1.5px solid var(--line);
      }
      li > svg {
        margin-top: 0.2rem;
        color: var(--accent);
      }
      li.missing > svg {
        color: var(--warn);
      }
      .title {
        font-weight: 600;
      }
      .ask {
        display: grid;
        gap: 0.5rem;
        justify-items: start;
      }
      input[type='file'] {
        max-width: 100%;
        font: inherit;
        font-size: 0.8125rem;
      }
      input[type='file']::file-selector-button {
        min-height: 2rem;
        margin-inline-end: 0.75rem;
        padding: 0.2rem 0.75rem;
        border: 1px solid var(--control);
        border-radius: 7px;
        background: var(--surface);
        color: var(--text);
        font: inherit;
        font-weight: 550;
        cursor: pointer;
      }
    `,
  ];

  override render(): TemplateResult {
    const backing = this.dependencies.filter(({ wanted }) => wanted.role === 'backing');
    const data = this.dependencies.filter(({ wanted }) => wanted.role === 'data-file');
    const top = this.chain[0];
    return html`<ol role="list">
      <li>
        ${icons.disk}<span
          ><span class="title name">${this.name}</span>
          <span class="muted">${top ? formatName(top.format) : ''}, the image itself</span>${this.#data(data, 0)}</span
        >
      </li>
      ${backing.map((dependency, index) => this.#layer(dependency, index + 1, data))}
    </ol>`;
  }

  #layer({ wanted, file, url, error }: Dependency, depth: number, data: Dependency[]): TemplateResult {
    const info = this.chain[depth];
    if (url) {
      return html`<li class=${error ? 'missing' : ''}>
        ${error ? icons.missing : icons.disk}<span
          ><span class="title name">${url}</span>
          <span class="muted">${error ? html`<br />${error.message}` : 'what it is cloned from'}</span></span
        >
      </li>`;
    }
    if (!file || error) {
      return html`<li class="missing">${icons.missing}<span class="ask">${this.#ask(wanted, 'Backing file', error)}</span></li>`;
    }
    return html`<li>
      ${icons.disk}<span
        ><span class="title name">${file.name}</span>
        <span class="muted"
          >${info ? `${formatName(info.format)}, ${size(info.virtualSize)}, ` : ''}backing file${file.name === baseName(wanted.name)
            ? ''
            : html` for <code class="name">${wanted.name}</code>`}</span
        >${this.#data(data, depth)}</span
      >
    </li>`;
  }

  #data(data: Dependency[], depth: number): TemplateResult | typeof nothing {
    const found = data.find(({ wanted }) => wanted.depth === depth);
    if (!found) return nothing;
    return found.file && !found.error
      ? html`<br /><span class="muted">Content in <span class="name">${found.file.name}</span></span>`
      : html`<span class="ask"><br />${this.#ask(found.wanted, 'Data file', found.error)}</span>`;
  }

  #ask(wanted: WantedFile, what: string, error: OxcowError | undefined): TemplateResult {
    const name = baseName(wanted.name);
    return html`<span
        ><span class="title">${error ? 'Not usable' : 'Missing'}: <code class="name">${name}</code></span><br />${error
          ? html`${error.message}<br />`
          : nothing}<span class="muted"
          >${what}${wanted.format ? ` (${formatName(wanted.format)})` : ''}${name === wanted.name
            ? ''
            : html`, named as <code class="name">${wanted.name}</code>`}. Drop it anywhere on this page, or choose it:</span
        ></span
      >
      <input type="file" aria-label=${`Choose ${name}`} @change=${(event: Event) => this.#supply(wanted, event)} />`;
  }

  #supply(wanted: WantedFile, event: Event): void {
    const input = event.target as HTMLInputElement;
    const file = input.files?.[0];
    input.value = ''; // So that the same file can be chosen again, when it has been put right.
    if (file) this.dispatchEvent(new CustomEvent<Supply>('supply', { detail: { wanted, file }, bubbles: true, composed: true }));
  }
}

customElements.define('ox-chain', Chain);
