// What the elements of the page have in common.

import { css } from 'lit';

export const base = css`
  *,
  *::before,
  *::after {
    box-sizing: border-box;
  }

  :host {
    display: block;
  }

  :host([hidden]),
  [hidden] {
    display: none !important;
  }

  h1,
  h2,
  h3,
  p,
  dl,
  dd,
  ul,
  ol,
  figure {
    margin: 0;
    padding: 0;
  }

  ul,
  ol {
    list-style: none;
  }

  h2 {
    font-size: 1.0625rem;
    font-weight: 650;
    letter-spacing: -0.005em;
    line-height: 1.3;
  }

  h3 {
    font-size: 0.9375rem;
    font-weight: 650;
  }

  .muted {
    color: var(--muted);
  }

  .small {
    font-size: 0.8125rem;
    line-height: 1.45;
  }

  code,
  .mono {
    font-family: var(--mono);
    font-size: 0.92em;
    font-variant-ligatures: none;
  }

  .number {
    font-variant-numeric: tabular-nums;
  }

  .name {
    overflow-wrap: anywhere;
  }

  .hide {
    position: absolute;
    width: 1px;
    height: 1px;
    margin: -1px;
    overflow: hidden;
    clip-path: inset(50%);
    white-space: nowrap;
  }

  .card {
    background: var(--surface);
    border: 1px solid var(--line);
    border-radius: var(--radius);
    padding: 1.125rem 1.25rem 1.25rem;
  }

  .card > header {
    display: flex;
    flex-wrap: wrap;
    align-items: baseline;
    justify-content: space-between;
    gap: 0.25rem 1rem;
    margin-bottom: 0.75rem;
  }

  .row {
    display: flex;
    flex-wrap: wrap;
    align-items: center;
    gap: 0.5rem 0.75rem;
  }

  .stack > * + * {
    margin-top: 0.75rem;
  }

  button,
  .button {
    display: inline-flex;
    align-items: center;
    justify-content: center;
    gap: 0.4em;
    min-height: 2.25rem;
    padding: 0.25rem 0.875rem;
    border: 1px solid var(--control);
    border-radius: 7px;
    background: var(--surface);
    color: var(--text);
    font: inherit;
    font-size: 0.875rem;
    font-weight: 550;
    cursor: pointer;
  }

  button:hover:not(:disabled),
  .button:hover {
    background: var(--sunken);
  }

  button.primary,
  .button.primary {
    background: var(--accent);
    border-color: var(--accent);
    color: var(--on-accent);
  }

  button.primary:hover:not(:disabled),
  .button.primary:hover {
    background: var(--accent);
    filter: brightness(1.08);
  }

  button:disabled {
    color: var(--muted);
    border-color: var(--line);
    background: var(--sunken);
    cursor: not-allowed;
  }

  button.icon {
    min-width: 2.25rem;
    padding: 0.25rem 0.5rem;
  }

  input[type='text'],
  select {
    min-height: 2.25rem;
    padding: 0.25rem 0.625rem;
    border: 1px solid var(--control);
    border-radius: 7px;
    background: var(--surface);
    color: var(--text);
    font: inherit;
    font-size: 0.875rem;
  }

  input[type='radio'],
  input[type='checkbox'] {
    accent-color: var(--accent);
    width: 1.05rem;
    height: 1.05rem;
    margin: 0;
  }

  /* Fields in a line, with the button that they are for. */
  .fields {
    display: flex;
    flex-wrap: wrap;
    align-items: end;
    gap: 0.5rem 0.75rem;
  }

  .fields label {
    display: grid;
    gap: 0.2rem;
    font-size: 0.8125rem;
    color: var(--muted);
  }

  .wrong {
    color: var(--danger);
    font-size: 0.8125rem;
  }

  fieldset {
    display: grid;
    gap: 0.625rem;
    margin: 0;
    padding: 0;
    border: 0;
  }

  .choice {
    display: grid;
    grid-template-columns: auto 1fr;
    gap: 0.125rem 0.625rem;
    font-size: 0.875rem;
    cursor: pointer;
  }

  .choice input {
    margin-top: 0.15rem;
  }

  .choice small {
    grid-column: 2;
    color: var(--muted);
    font-size: 0.8125rem;
  }

  :focus-visible {
    outline: 2px solid var(--accent);
    outline-offset: 2px;
  }

  progress {
    appearance: none;
    display: block;
    width: 100%;
    height: 8px;
    border: 0;
    border-radius: 4px;
    overflow: hidden;
    background: var(--kind-unallocated);
    color: var(--accent);
  }

  progress::-webkit-progress-bar {
    background: var(--kind-unallocated);
  }

  progress::-webkit-progress-value {
    background: var(--accent);
  }

  progress::-moz-progress-bar {
    background: var(--accent);
  }

  .running {
    display: grid;
    gap: 0.5rem;
  }

  .scroll {
    overflow-x: auto;
  }

  table {
    width: 100%;
    border-collapse: collapse;
    font-size: 0.875rem;
  }

  th,
  td {
    padding: 0.375rem 0.75rem 0.375rem 0;
    text-align: start;
    vertical-align: baseline;
    border-bottom: 1px solid var(--line);
  }

  th {
    color: var(--muted);
    font-size: 0.8125rem;
    font-weight: 550;
    white-space: nowrap;
  }

  tbody tr:last-child > * {
    border-bottom: 0;
  }

  th.end,
  td.end {
    text-align: end;
  }

  .tag {
    display: inline-flex;
    align-items: center;
    gap: 0.3em;
    padding: 0.05rem 0.5rem;
    border-radius: 999px;
    border: 1px solid var(--line);
    background: var(--sunken);
    font-size: 0.8125rem;
    font-weight: 550;
    white-space: nowrap;
  }

  .note {
    display: flex;
    gap: 0.625rem;
    padding: 0.625rem 0.75rem;
    border-radius: 8px;
    border: 1px solid transparent;
    background: var(--sunken);
    font-size: 0.875rem;
  }

  .note > svg {
    flex: none;
    margin-top: 0.15rem;
  }

  .note.ok {
    background: var(--ok-soft);
  }
  .note.ok > svg {
    color: var(--ok);
  }
  .note.warning {
    background: var(--warn-soft);
  }
  .note.warning > svg {
    color: var(--warn);
  }
  .note.danger {
    background: var(--danger-soft);
  }
  .note.danger > svg {
    color: var(--danger);
  }

  summary {
    cursor: pointer;
    font-size: 0.875rem;
    font-weight: 550;
    padding: 0.25rem 0;
  }

  @media (forced-colors: active) {
    button.primary,
    .button.primary {
      background: ButtonFace;
      color: ButtonText;
      border: 2px solid ButtonText;
    }
    button:disabled {
      color: GrayText;
      border-color: GrayText;
    }
    .note,
    .tag {
      border-color: CanvasText;
    }
  }

  @media (prefers-reduced-motion: no-preference) {
    button,
    .button {
      transition: background-color 0.12s;
    }
  }
`;
